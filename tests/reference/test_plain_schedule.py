"""vLLM's scheduling rules under the composer: seats, KV blocks, prefix hits, preemption."""

import math
from dataclasses import replace

from composer_cases import AT_256, QUICK, decode, hold, prompt, state, step
from hypothesis import given
from hypothesis import strategies as st
from plain_composer import Hold, Step, compose
from plain_moves import finish, issue
from plain_pipeline import Pass
from plain_schedule import blocks

from beam_runtime.types import EngineLimits, Knobs, RequestState, Rules


class TestSchedulingLikeVllm:
    def test_running_requests_come_before_waiting_ones_and_prefill_takes_the_rest(self):
        found = step(state(decode("d"), prompt("p", 600, computed=500), waiting=[prompt("w", 900)]))
        assert found.decodes == ("d",)
        assert found.chunks == (("p", 100), ("w", 155))
        assert found.admitted == ("w",)
        assert found.shape.tokens == 256
        assert found.shape.prefill_context_tokens == 500
        assert found.shape.decode_context_tokens == 100
        assert found.shape.prefill_pairs == 100 * (500 + 101 / 2) + 155 * 156 / 2

    def test_a_decode_in_flight_needs_its_token_but_the_next_chunk_does_not(self):
        flying = decode("d")
        flying = RequestState("d", 100, 0.0, computed_tokens=101, generated_tokens=1)
        found = step(state(flying, prompt("p", 600, computed=256)))
        assert found.decodes == ()
        assert found.chunks == (("p", 256),)

    def test_no_more_requests_run_than_there_are_seats(self):
        limits = EngineLimits(pp=4, max_num_seqs=2)
        found = step(state(decode("d"), waiting=[prompt("a", 8), prompt("b", 8)], limits=limits))
        assert found.admitted == ("a",)

    def test_a_prompt_is_admitted_only_if_all_of_it_fits(self):
        waiting = [prompt("large", 65), prompt("small", 16)]
        assert step(state(waiting=waiting, free_blocks=5)).admitted == ("large",)
        assert hold(state(waiting=waiting, free_blocks=4)).until_ms == math.inf

    def test_blocks_are_taken_as_tokens_are_scheduled(self):
        found = step(state(waiting=[prompt("w", 900)], free_blocks=57), Knobs(1410, 100))
        assert found.blocks == 7  # ceil(100 / 16) now; all of ceil(900 / 16) = 57 were there

    def test_a_prefix_hit_counts_as_computed_on_admission(self):
        found = step(state(waiting=[prompt("w", 100, cached=64)]))
        assert found.chunks == (("w", 36),)
        assert found.shape.prefill_context_tokens == 64
        assert found.blocks == 3  # blocks 5 to 7; 1 to 4 are somebody else's

    def test_blocks_of_a_hit_that_nobody_holds_are_taken_from_the_free_ones(self):
        hit = replace(prompt("w", 100, cached=64), unheld_tokens=32)
        found = step(state(waiting=[hit], free_blocks=5))
        assert found.chunks == (("w", 36),)
        assert found.blocks == 5  # blocks 3 to 7; 1 and 2 are held already
        assert isinstance(compose(state(waiting=[hit], free_blocks=4), AT_256, 0.0, QUICK), Hold)

    def test_a_prompt_that_is_cached_whole_still_computes_its_last_block(self):
        assert step(state(waiting=[prompt("w", 64, cached=64)])).chunks == (("w", 16),)

    def test_a_request_that_was_preempted_may_hit_its_own_answer(self):
        back = replace(prompt("w", 60, cached=80), generated_tokens=30)
        assert step(state(waiting=[back])).chunks == (("w", 10),)

    def test_preemption_gives_back_what_nobody_ahead_holds(self):
        full = decode("a", context=160)
        last = replace(decode("b", context=80), cached_tokens=64, unheld_tokens=16)
        found = step(state(full, last, free_blocks=0))
        assert found.preempted == ("b",)
        assert found.blocks == 1 - 2  # of its five blocks "a" holds three

    def test_the_last_running_request_is_preempted_and_then_nobody_admitted(self):
        full = decode("a", context=160)  # its next token opens an eleventh block
        found = step(state(full, decode("b", context=40), waiting=[prompt("w", 8)], free_blocks=0))
        assert found.preempted == ("b",)
        assert found.decodes == ("a",)
        assert found.admitted == ()
        assert found.blocks == 1 - 3

    def test_a_request_that_finds_no_block_preempts_itself_last(self):
        found = step(state(decode("a", context=160), free_blocks=0))
        assert found.preempted == ("a",)
        assert found.shape.tokens == 0

    def test_a_prompt_over_the_model_length_does_not_block_the_queue(self):
        limits = EngineLimits(pp=4, max_model_len=1000)
        found = step(state(waiting=[prompt("huge", 1001), prompt("w", 9)], limits=limits))
        assert found.admitted == ("w",)

    def test_a_request_at_the_model_length_is_scheduled_no_more(self):
        limits = EngineLimits(pp=4, max_model_len=100)
        assert hold(state(decode("d", context=100), limits=limits)).until_ms == math.inf

    def test_vanilla_skips_decodes_beyond_the_budget(self):
        both = state(decode("a"), decode("b"), waiting=[prompt("w", 9)])
        assert step(both, Knobs(1410, 1), rules=Rules.vanilla()).decodes == ("a",)
        full = step(both, Knobs(1410, 2), rules=Rules.vanilla())
        assert (full.decodes, full.chunks) == (("a", "b"), ())


PROMPTS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(-5, 90), st.integers(-5, 90), st.integers(1, 40)),
    min_size=1,
    max_size=6,
)


@given(PROMPTS, st.sampled_from((1, 4, 7)), st.integers(20, 60))
def test_kv_blocks_are_neither_lost_nor_made(
    prompts: list[tuple[int, int, int, int]], block_size: int, tokens: int
) -> None:
    """Whatever a prefix cache claims to hold of a prompt, to its last token and beyond."""
    limits = EngineLimits(pp=2, block_size=block_size, max_num_seqs=4, max_batched_tokens=24)
    every_block = -(-100 // block_size)  # one request always fits
    now = state(
        waiting=[
            replace(prompt(f"w{i}", tokens, cached=hit), unheld_tokens=unheld)
            for i, (tokens, hit, unheld, _) in enumerate(prompts)
        ],
        limits=limits, free_blocks=every_block,
    )  # fmt: skip
    outputs = {f"w{i}": last for i, (*_, last) in enumerate(prompts)}
    for at in range(10_000):
        held = {r.request_id: blocks(r.computed_tokens, r, block_size) for r in now.running}
        assert now.free_blocks + sum(held.values()) == every_block
        assert now.free_blocks >= 0
        assert all(number > 0 for number in held.values()), "its last token is its own"
        if not (now.running or now.waiting):
            return
        move = compose(now, Knobs(1410, tokens), float(at), QUICK, Rules.vanilla())
        if isinstance(move, Step):
            route = (Pass(float(at), 0.0, 0.0),) * 2 if move.shape.tokens else ()
            now = issue(now, move, route)
        else:
            now = finish(now, float(at))
            ended = [r for r in now.running if r.generated_tokens >= outputs[r.request_id]]
            freed = sum(blocks(r.computed_tokens, r, block_size) for r in ended)
            now = replace(
                now,
                running=tuple(r for r in now.running if r not in ended),
                free_blocks=now.free_blocks + freed,
            )
    raise AssertionError("it never ends")
