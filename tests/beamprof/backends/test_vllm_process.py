"""The engine's process and what drives it, over a vLLM on paper (fake_vllm): no vLLM needed.

Every shape asked for must be the one that was timed, whether one step is in flight or two.
"""

import os
from pathlib import Path

import pytest

from beam_runtime.types import StepShape
from beamprof.backends.vllm_process import VllmProcess
from beamprof.errors import BackendError

OPTIONS = {
    "model": "m", "layers": 2, "tp": 1, "dtype": "float32", "max_model_len": 600,
    "max_positions": 600, "max_batched_tokens": 128, "max_seqs": 18, "clock": "wall", "more": {},
}  # fmt: skip
CELLS = [
    StepShape(1),
    StepShape(64, 128),
    StepShape(0, 0, 4, 400),
    StepShape(0, 0, 16, 16 * 20 + 5),
    StepShape(32, 64, 8, 8 * 50),
    StepShape(0, 0, 3, 3),  # contexts of one token: admitted anew for every pass
]
FAKE = Path(__file__).parent / "fake_vllm"


def start(mode: str = "") -> VllmProcess:
    path = os.pathsep.join([str(FAKE), os.environ.get("PYTHONPATH", "")])
    return VllmProcess(OPTIONS, {"PYTHONPATH": path, "FAKE_VLLM": mode})


@pytest.fixture(scope="module", params=["", "deep"], ids=["one in flight", "two in flight"])
def engine(request: pytest.FixtureRequest):
    process = start(request.param)
    yield process
    process.close()


def test_it_says_what_it_is(engine: VllmProcess) -> None:
    assert engine.report == {"version": "0.0.fake", "blocks": 400, "block_size": 16, "uuids": []}


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_kind_of_cell_is_timed(engine: VllmProcess, cell: StepShape) -> None:
    engine.prepare(cell)
    for passes in (1, 5, 70):  # also over the end of an admission
        engine.enqueue(passes)
    counts = [len(engine.collect()) for _ in range(3)]
    assert counts == [1, 5, 70]
    assert engine.step_ms > 0.0


def test_orders_run_ahead_and_a_cell_left_halfway_does_no_harm(engine: VllmProcess) -> None:
    engine.prepare(CELLS[2])
    engine.enqueue(3)
    engine.enqueue(3)
    engine.prepare(CELLS[1])
    engine.enqueue(2)
    assert len(engine.collect()) == 2


def test_too_many_blocks_refuse_the_cell_and_not_the_next(engine: VllmProcess) -> None:
    with pytest.raises(BackendError, match="KV-cache blocks of 16 tokens, vLLM has 399") as caught:
        engine.prepare(StepShape(0, 0, 16, 16 * 480))
    assert "--max-context" in str(caught.value.hint)
    engine.prepare(CELLS[0])
    engine.enqueue(1)
    assert len(engine.collect()) == 1


def test_the_host_gap_is_seen_where_there_is_one() -> None:
    gaps = {}
    for mode in ("", "deep"):
        process = start(mode)
        try:
            process.prepare(CELLS[2])
            process.enqueue(50)
            process.collect()
            gaps[mode] = process.gap_ms
        finally:
            process.close()
    assert gaps[""] >= 1.0  # what its schedule() sleeps
    assert gaps["deep"] == 0.0  # the host works while a pass runs


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("too old", "lacks what BEAM needs: KVTransferConfig.kv_connector_module_path"),
        ("stripped", "lacks what BEAM needs: Scheduler.connector"),
    ],
)
def test_a_vllm_that_lacks_something_is_told_what(mode: str, words: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        start(mode)
    assert "0.0.fake" in caught.value.message
    assert "--backend torch" in str(caught.value.hint)


def test_a_vllm_that_does_not_start_has_its_own_words_told() -> None:
    with pytest.raises(BackendError, match="vLLM failed") as caught:
        start("refuses")
    assert caught.value.cause == "ValueError: no such model"


def test_a_scheduler_that_does_otherwise_is_noticed() -> None:
    process = start("deaf")
    try:
        process.prepare(StepShape(64, 100))  # chunks of a whole prompt begin at 0, 64, 128
        process.enqueue(1)
        with pytest.raises(BackendError, match="does not schedule this cell as asked"):
            process.collect()
        process.prepare(CELLS[0])  # which needs no context
        process.enqueue(1)
        assert len(process.collect()) == 1
    finally:
        process.close()


def test_a_process_that_dies_leaves_its_last_words() -> None:
    process = start("dies")
    process.prepare(CELLS[0])
    process.enqueue(1)
    with pytest.raises(BackendError, match="process has ended") as caught:
        process.collect()
    assert "out of memory" in str(caught.value.cause)
    process.close()
    with pytest.raises(BackendError, match="not open"):
        process.enqueue(1)


def test_nothing_is_left_after_close_whatever_it_was_doing() -> None:
    process = start()
    process.prepare(CELLS[2])
    process.enqueue(1000)  # seconds of passes
    child = process._process
    assert child is not None
    process.close()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_it_ends_when_whoever_started_it_is_gone() -> None:
    process = start()
    child = process._process
    assert child is not None
    assert child.stdin is not None
    child.stdin.close()  # as the kernel does for a process that was killed
    assert child.wait(20) == 0
    process.close()


def test_an_interrupt_from_the_keyboard_is_not_for_the_engine() -> None:
    process = start()
    try:
        child = process._process
        assert child is not None
        assert os.getpgid(child.pid) != os.getpgid(0)
    finally:
        process.close()
