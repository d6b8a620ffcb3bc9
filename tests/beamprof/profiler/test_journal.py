"""The journal under what happens to files: cuts, flipped bytes, full disks, two writers."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.errors import JournalError, OutputError
from beamprof.profiler.journal import Journal, journal_path, peek, trial_id
from beamprof.profiler.plan import Trial

SWEEP = {"model": "llama3-8b", "clocks_mhz": "510,1410", "seed": "0"}
TRIALS = [
    Trial(Cell(kind, clock, decode_requests=batch, decode_context_tokens=batch * 100), number)
    for number in range(2)
    for clock in (510, 1410)
    for kind, batch in ((RowKind.FORWARD, 1), (RowKind.FORWARD, 8), (RowKind.IDLE, 0))
]
MEASURED = {
    trial: Measurement(1.0 + i / 3, 2.0 + i / 7, Source.MEASURED, temperature_c=60.0 + i)
    for i, trial in enumerate(TRIALS)
}
ANYWHERE = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.parquet.journal.jsonl"


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The bytes of a finished journal."""
    path = tmp_path / "whole.jsonl"
    with Journal.open(path, SWEEP) as journal:
        for trial, measurement in MEASURED.items():
            journal.append(trial, measurement)
    return path.read_bytes()


def test_it_lies_beside_the_table(tmp_path: Path) -> None:
    output = tmp_path / "table.parquet"
    assert journal_path(output) == tmp_path / "table.parquet.journal.jsonl"


def test_what_was_appended_is_there_again(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    with Journal.open(path, SWEEP) as journal:
        assert journal.entries == MEASURED
        assert journal.notes == []
    assert path.read_bytes() == whole
    assert peek(path) == (SWEEP, len(TRIALS))


@given(data=st.data())
@ANYWHERE
def test_a_cut_anywhere_loses_the_line_it_hits_and_nothing_else(
    path: Path, whole: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    survivors = max(0, whole[:cut].count(b"\n") - 1)
    line_is_whole = cut < len(whole) and whole[cut : cut + 1] == b"\n"
    if line_is_whole and whole[:cut].count(b"\n") > 0:
        survivors += 1
    with Journal.open(path, SWEEP) as journal:
        assert list(journal.entries) == TRIALS[:survivors]
        for trial in TRIALS[survivors:]:
            journal.append(trial, MEASURED[trial])
    assert path.read_bytes() == whole


@given(data=st.data())
@ANYWHERE
def test_a_changed_byte_is_never_believed(path: Path, whole: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    try:
        with Journal.open(path, SWEEP) as journal:
            found = journal.entries
    except JournalError:
        return
    # Taken: then either the header's copy of the sweep was hit, or the last newline.
    assert all(MEASURED[trial] == measurement for trial, measurement in found.items())
    assert len(found) >= len(TRIALS) - 1


def test_a_broken_line_in_the_middle_is_named(path: Path, whole: bytes) -> None:
    lines = whole.splitlines(keepends=True)
    lines[3] = b'{"id": "half\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="damaged in line 4") as caught:
        Journal.open(path, SWEEP)
    assert "--fresh" in str(caught.value.hint)
    assert path.read_bytes() == b"".join(lines)


def test_an_altered_number_is_named(path: Path, whole: bytes) -> None:
    latency = b'"latency_ms":1.0,'
    assert whole.count(latency) == 1
    path.write_bytes(whole.replace(latency, b'"latency_ms":9.0,'))
    with pytest.raises(JournalError, match="damaged in line 2"):
        Journal.open(path, SWEEP)


def test_a_journal_of_another_sweep_is_left_alone_and_the_difference_named(
    path: Path, whole: bytes
) -> None:
    path.write_bytes(whole)
    with pytest.raises(JournalError, match="another sweep") as caught:
        Journal.open(path, {**SWEEP, "seed": "7"})
    assert caught.value.cause == "seed is 0 there, 7 here"
    assert "--fresh" in str(caught.value.hint)
    assert path.read_bytes() == whole


def test_of_two_shapes_the_field_that_differs_is_named(path: Path) -> None:
    shape = {"dtype": "bfloat16", "heads": 32, "layers": 32, "name": "a name of some length"}
    with Journal.open(path, {**SWEEP, "model_shape": json.dumps(shape)}):
        pass
    with pytest.raises(JournalError, match="another sweep") as caught:
        Journal.open(path, {**SWEEP, "model_shape": json.dumps({**shape, "layers": 16})})
    assert caught.value.cause == "model_shape.layers is 32 there, 16 here"


@pytest.mark.parametrize(
    "text", ["hello\n", "[1, 2]\n", "[" * 100_000 + "\n", '{"a": 1}\n', "\n", "\0\0\0\n"]
)
def test_a_file_that_is_no_journal_is_left_alone(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(JournalError, match="no journal of BEAM"):
        Journal.open(path, SWEEP)
    assert path.read_text() == text


def test_a_file_that_no_sweep_fills_is_left_alone(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 33)  # a hole: it takes no room, and would take all memory
    with pytest.raises(JournalError, match="no journal of BEAM") as caught:
        Journal.open(path, SWEEP)
    assert str(1 << 33) in str(caught.value.cause)
    assert path.stat().st_size == 1 << 33


def test_another_version_is_refused(path: Path, whole: bytes) -> None:
    path.write_bytes(whole.replace(b'"beam_journal":1', b'"beam_journal":2'))
    with pytest.raises(JournalError, match="journal version 2"):
        Journal.open(path, SWEEP)


def test_fresh_starts_over(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    with Journal.open(path, {**SWEEP, "seed": "7"}, fresh=True) as journal:
        assert journal.entries == {}
    assert peek(path) == ({**SWEEP, "seed": "7"}, 0)


def test_a_line_copied_from_another_sweep_is_not_taken(path: Path, whole: bytes) -> None:
    with Journal.open(path, {**SWEEP, "seed": "7"}) as journal:
        journal.append(TRIALS[0], MEASURED[TRIALS[0]])
    foreign = path.read_bytes().splitlines(keepends=True)[1]
    path.write_bytes(whole + foreign)
    with pytest.raises(JournalError, match=f"line {len(TRIALS) + 2}"):
        Journal.open(path, SWEEP)


def test_two_writers_are_one_too_many(path: Path) -> None:
    with Journal.open(path, SWEEP), pytest.raises(JournalError, match="another process writes"):
        Journal.open(path, SWEEP)
    Journal.open(path, SWEEP).close()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_keeps_every_earlier_trial(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with Journal.open(path, SWEEP) as journal:
        journal.append(TRIALS[0], MEASURED[TRIALS[0]])
        before = path.read_bytes()
        real_write = os.write

        def full(descriptor: int, data: bytes = b"") -> int:
            real_write(descriptor, data[:20])  # part of the line fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, call, full)
            with pytest.raises(OutputError) as caught:
                journal.append(TRIALS[1], MEASURED[TRIALS[1]])
        assert caught.value.cause == "No space left on device"
        assert "run the same command again" in str(caught.value.hint)
        assert TRIALS[1] not in journal.entries
    assert path.read_bytes() == before
    with Journal.open(path, SWEEP) as journal:
        assert list(journal.entries) == TRIALS[:1]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot open the journal"):
        Journal.open(tmp_path, SWEEP)


@given(st.lists(st.sampled_from(TRIALS), min_size=2, max_size=2, unique=True))
def test_ids_differ_by_cell_number_and_sweep(pair: list[Trial]) -> None:
    first, second = pair
    assert trial_id(first, "a") != trial_id(second, "a")
    assert trial_id(first, "a") != trial_id(first, "b")
    assert trial_id(first, "a") == trial_id(first, "a")
