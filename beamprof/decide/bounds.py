"""What is asked of a decision, held against what the table can answer."""

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, StepShape
from beamprof.decide.engine_state import StateSpec
from beamprof.errors import StateError
from beamprof.tables.grid import forward_steps
from beamprof.tables.kv_room import most_kv_tokens
from beamprof.tables.model_length import longest_request

# What vLLM's server takes, and docs/vllm.md recommends.
DEFAULT_CHUNK_TOKENS = 2048
# More than any model of today takes in one request.
_MOST_TOKENS = 16_000_000


def largest_step(table: PerfTable, asked_tokens: int | None) -> tuple[int, list[str]]:
    """The largest step to choose from, and a line where it is less than was asked.

    Args:
        table: its largest measured step is the limit: beyond it nothing is known.
        asked_tokens: None = the default, cut without a word.
    """
    known = max(step.tokens for step in forward_steps(table.rows(RowKind.FORWARD)))
    wanted = DEFAULT_CHUNK_TOKENS if asked_tokens is None else asked_tokens
    if wanted <= known:
        return wanted, []
    if asked_tokens is None:
        return known, []
    return known, [
        f"--max-chunk {asked_tokens} was cut to {known}, the largest step in the table: what "
        "larger ones cost is not known (beam profile --max-tokens measures them)"
    ]


def clock_of(table: PerfTable, asked_mhz: int | None) -> int | None:
    """The clock that the engine is at, if the table has it.

    Raises:
        TableError: it has not.
    """
    if asked_mhz is None or asked_mhz in table.clocks_mhz:
        return asked_mhz
    near = sorted(table.clocks_mhz, key=lambda clock: abs(clock - asked_mhz))[:2]
    raise TableError(
        f"{asked_mhz} MHz is not among the table's clocks",
        cause=f"it has {', '.join(str(clock) for clock in table.clocks_mhz)} MHz",
        hint=f"the nearest: --clock {' or '.join(str(clock) for clock in sorted(near))}",
    )


def beyond_the_table(table: PerfTable, spec: StateSpec, chunk_tokens: int) -> list[str]:
    """A line for what is extrapolated: the dearest chunk that waits, or the decodes together.

    Args:
        table: what it covers.
        spec: who waits and who runs.
        chunk_tokens: the largest chunk that was chosen.
    """
    fit = StepCost.from_table(table).fit
    steps = []
    if spec.waiting:
        prompt = max(one.prompt_tokens for one in spec.waiting)
        chunk = min(prompt, chunk_tokens)
        steps.append(StepShape(chunk, prompt - chunk))
    if spec.running:
        contexts = sum(one.context_tokens for one in spec.running)
        steps.append(StepShape(0, 0, len(spec.running), contexts))
    outside = filter(None, (fit.outside(step) for step in steps))
    return [f"extrapolated: the table does not cover this state: {words}" for words in outside]


def check_state(table: PerfTable, spec: StateSpec, limits: EngineLimits) -> None:
    """Refuse states that no engine of such a table can be in.

    Raises:
        StateError: a request of more tokens than any model takes, or with more cached than it has;
            more running than may; more KV cache than the GPUs have memory.
    """
    sizes = [one.prompt_tokens for one in spec.waiting]
    sizes += [one.context_tokens for one in spec.running]
    if sizes and max(sizes) > _MOST_TOKENS:
        raise StateError(
            f"a request of {max(sizes):,} tokens is more than any model takes",
            hint=f"{_MOST_TOKENS:,} tokens at most",
        )
    for number, one in enumerate(spec.waiting):
        if one.cached_tokens > one.prompt_tokens:
            raise StateError(
                f"waiting.{number}: {one.cached_tokens:,} cached tokens of a prompt of "
                f"{one.prompt_tokens:,}",
                hint=f"cached_tokens is the part of the prompt that is cached, "
                f"{one.prompt_tokens} at most",
            )
    if len(spec.running) > limits.max_num_seqs:
        raise StateError(
            f"{len(spec.running):,} requests run where {limits.max_num_seqs:,} may (max_num_seqs)",
            hint=f"--max-num-seqs {len(spec.running)}, or let some of them wait",
        )
    held = sum(one.context_tokens for one in spec.running)
    most = most_kv_tokens(table)
    if most is not None and held > most:
        raise StateError(
            f"the running requests hold {held:,} tokens of KV cache, more than there can be",
            cause=f"{table.device} has memory for {most:,} beside the weights of {table.model}, "
            f"tp {table.tp} pp {table.pp}",
            hint="fewer or shorter requests under --running",
        )


def too_long(table: PerfTable, spec: StateSpec) -> list[str]:
    """A line where a request has more tokens than the model takes; a context can be made longer."""
    most = longest_request(table)
    sizes = [one.prompt_tokens + 1 for one in spec.waiting]
    sizes += [one.context_tokens for one in spec.running]
    longer = sum(size > most for size in sizes) if most is not None else 0
    if not longer:
        return []
    return [
        f"{longer:,} of {len(sizes):,} requests have more than the {most:,} tokens that "
        f"{table.model} takes, answers included"
    ]
