"""The log keeps what a reader needs, survives full disks and crashes, and never breaks JSON."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beam_runtime import Controller
from beam_runtime.control.decision_log import (
    SCHEMA,
    DecisionLog,
    decision_fields,
    knobs_of,
    read_log,
)
from beam_runtime.emulator.moment import Moment
from beam_runtime.errors import BeamError
from beam_runtime.types import (
    Alternative,
    Decision,
    EngineLimits,
    Forecast,
    Knobs,
    RequestState,
    Snapshot,
)

KNOBS = Knobs(1005, 256, 2, 66.7)


def snapshot() -> Snapshot:
    return Snapshot(
        now_ms=10.0,
        limits=EngineLimits(pp=4),
        knobs=Knobs(1410, 512),
        running=(RequestState("old", 100, 0.0, computed_tokens=103, generated_tokens=4),),
        waiting=(RequestState("new", 700, 5.0),),
    )


def decided() -> Decision:
    forecast = Forecast(
        ttft_ms={"new": 640.0, "blocked": math.inf},
        worst_tbt_ms={"old": 120.0},
        ttft_excess_ms=-340.0,
        tbt_excess_ms=-65.0,
        ttft_worst="new",
        tbt_worst="old",
        broken=0.0,
        horizon_ms=500.0,
        active_energy_j=300.0,
        idle_energy_j=20.0,
    )
    refused = [
        Alternative(Knobs(510 + n, 256), 200.0 + n, "TTFT 90 ms over", "new") for n in range(9)
    ]
    dearer = Alternative(Knobs(1410, 256), 900.0, "+580.0 J")
    return Decision(KNOBS, forecast, "the least", (*refused, dearer), 10.0)


@pytest.fixture
def log(tmp_path: Path) -> DecisionLog:
    log = DecisionLog(tmp_path / "log.jsonl")
    log.write("start", 0.0, schema=SCHEMA)
    return log


def test_what_is_written_is_read_again(log: DecisionLog) -> None:
    log.write("decision", 10.0, **decision_fields(decided(), Moment.of(snapshot()), 0.2))
    log.close()
    start, record = read_log(log.path)
    assert start["schema"] == SCHEMA
    assert knobs_of(record) == KNOBS
    assert record["state"]["waiting_tokens"] == 700
    assert record["state"]["context_tokens"] == 103
    assert record["forecast"]["ttft_ms"] == {"new": 640.0, "blocked": None}
    assert record["forecast"]["worst_tbt_ms"] == 120.0
    assert record["forecast"]["energy_j"] == 320.0
    assert [one["knobs"]["clock_mhz"] for one in record["refused"]] == [510, 511, 512]


def test_a_log_is_continued(log: DecisionLog) -> None:
    log.close()
    again = DecisionLog(log.path)
    again.write("stop", 1.0)
    again.close()
    assert [record["kind"] for record in read_log(log.path)] == ["start", "stop"]


def test_a_crash_in_the_middle_of_a_line_costs_that_line(log: DecisionLog) -> None:
    log.write("stop", 1.0)
    log.close()
    text = log.path.read_text()
    log.path.write_text(text[: len(text) - 5])
    assert [record["kind"] for record in read_log(log.path)] == ["start"]


def test_damage_in_the_middle_costs_its_line(log: DecisionLog) -> None:
    log.write("stop", 1.0)
    log.close()
    start, stop = log.path.read_text().splitlines()
    log.path.write_text(f"{start}\n{stop[:9]}\n{stop}\n")
    assert [record["kind"] for record in read_log(log.path)] == ["start", "stop"]
    log.path.write_text(f"{start[:9]}\n{stop}\n")
    with pytest.raises(BeamError, match=r"log\.jsonl:1"):
        list(read_log(log.path))


@pytest.mark.parametrize("line", [b"[" * 100_000, b"5", b"[1]", b"\xff\xfe", b'{"at_ms": 1}', b""])
def test_a_line_that_is_no_record_is_left_out_alone(log: DecisionLog, line: bytes) -> None:
    log.write("stop", 1.0)
    log.close()
    start, stop = log.path.read_bytes().splitlines()
    log.path.write_bytes(b"\n".join((start, line, stop, line)))
    assert [record["kind"] for record in read_log(log.path)] == ["start", "stop"]


class Odd:
    """A request's field whose every use raises."""

    def __str__(self) -> str:
        raise RuntimeError("odd")


@pytest.mark.parametrize(
    "value", [Odd(), {Odd(): 1}, 10**5000, [[]]], ids=["text", "key", "int", ""]
)
def test_what_cannot_be_written_costs_its_record(log: DecisionLog, value: object) -> None:
    deep: object = value
    for _ in range(100_000 if value == [[]] else 0):
        deep = [deep]
    log.write("request", 1.0, told=deep)
    log.write("stop", math.inf)
    log.close()
    assert (log.unwritable, log.failure) == (1, "")
    records = list(read_log(log.path))
    assert [record["kind"] for record in records] == ["start", "stop"]
    assert records[1]["at_ms"] == records[0]["at_ms"], "the run's own time where it has none"


def test_a_run_after_a_crash_begins_a_line_of_its_own(log: DecisionLog) -> None:
    log.write("first", 1.0)
    log.close()
    log.path.write_text(log.path.read_text()[:-9])
    again = DecisionLog(log.path)
    again.write("second", 2.0)
    again.close()
    assert [record["kind"] for record in read_log(log.path)] == ["start", "second"]


def test_a_full_file_makes_room_for_a_new_one_over_all_runs(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    number = 0
    for _ in range(5):
        log = DecisionLog(path, max_bytes=500, kept=2)
        log.write("start", float(number), schema=SCHEMA, limits={"pp": 4})
        for _ in range(20):
            number += 1
            log.write("decision", float(number))
        assert log.failure == ""
        log.close()
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["log.jsonl", "log.jsonl.1", "log.jsonl.2"]
    told: list[float] = []
    for name in reversed(names):
        records = list(read_log(tmp_path / name))
        assert (tmp_path / name).stat().st_size <= 500
        assert records[0]["limits"] == {"pp": 4}, "each can be read by itself"
        told += [record["at_ms"] for record in records if record["kind"] == "decision"]
    assert told == sorted(told)
    assert told[-1] == 100.0
    assert told == list(map(float, range(round(told[0]), 101))), "none is lost on the way"


def test_a_log_that_somebody_took_away_goes_on_in_a_new_file(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl", max_bytes=200)
    log.write("start", 0.0, schema=SCHEMA)
    log.path.unlink()
    for number in range(20):
        log.write("decision", float(number))
    assert log.failure == ""
    assert next(read_log(log.path))["kind"] == "start"
    log.close()


def test_what_came_before_the_start_stands_behind_it(tmp_path: Path) -> None:
    """A table that cannot be used is said before any time is told."""
    log = DecisionLog(tmp_path / "log.jsonl")
    log.write("steering", -math.inf, steering=False, reason="no usable table")
    log.write("start", 5.0, schema=SCHEMA)
    log.close()
    told = [(record["kind"], record["at_ms"]) for record in read_log(log.path)]
    assert told == [("start", 5.0), ("steering", 5.0)]


def test_a_controller_without_a_table_leaves_a_log_that_can_be_read(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with Controller.from_table(tmp_path / "nix.parquet", EngineLimits(pp=4), decision_log=log):
        pass
    start, fell, stop = read_log(log)
    assert (start["kind"], stop["kind"]) == ("start", "stop")
    assert "no usable table" in fell["reason"]


def test_a_file_that_goes_on_says_when_it_began(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl", max_bytes=300)
    log.write("start", 0.0, schema=SCHEMA, unix_s=1.0)
    for number in range(20):
        log.write("decision", float(number))
    log.close()
    start = next(read_log(log.path))
    assert start["continued"]
    assert start["unix_s"] > 1.0


def test_a_first_line_that_was_cut_hides_no_later_run(log: DecisionLog) -> None:
    log.close()
    whole = log.path.read_text()
    log.path.write_text(whole[:12] + "\n" + whole)
    assert [record["kind"] for record in read_log(log.path)] == ["start"]


def test_a_run_of_another_schema_is_not_read_as_one_of_this(log: DecisionLog) -> None:
    log.write("start", 1.0, schema="beam.decisions/99")
    log.close()
    with pytest.raises(BeamError, match="a run in it") as refused:
        list(read_log(log.path))
    assert SCHEMA in (refused.value.hint or "")


_WRITES_TOO = """
import sys
from beam_runtime.control.decision_log import DecisionLog
DecisionLog(sys.argv[1])
"""


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    """Two engines with one configuration: the second has no log, and says so."""
    log = DecisionLog(tmp_path / "log.jsonl", max_bytes=300)

    def second() -> str:
        said = subprocess.run(
            [sys.executable, "-c", _WRITES_TOO, str(log.path)],
            check=False,
            capture_output=True,
            text=True,
        )
        return said.stderr

    log.write("start", 0.0, schema=SCHEMA)
    assert "another process writes to it" in second()
    for number in range(20):
        log.write("decision", float(number))
    assert "another process writes to it" in second(), "after the file was full, too"
    log.close()
    assert second() == ""


def test_a_pipe_never_turns_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    log = DecisionLog(tmp_path / "pipe", max_bytes=100)
    for number in range(20):
        log.write("decision", float(number))
    log.close()
    assert len(os.read(reader, 65536).splitlines()) == 20
    os.close(reader)
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]


def test_an_idle_hour_is_a_heartbeat(log: DecisionLog) -> None:
    before = log.path.stat().st_size
    written = [not log.is_idle(0, at_ms) for at_ms in range(0, 3_600_000, 250)]
    assert written == [True] + [False] * (len(written) - 1)
    log.close()
    kinds = [record["kind"] for record in read_log(log.path)]
    assert kinds == ["start"] + ["heartbeat"] * 5
    assert log.path.stat().st_size - before < 500


def test_whoever_comes_ends_the_idleness(log: DecisionLog) -> None:
    assert not log.is_idle(0, 0.0)
    assert log.is_idle(0, 1.0)
    assert not log.is_idle(3, 2.0)
    assert not log.is_idle(0, 3.0), "with what the engine is left"
    assert log.is_idle(0, 4.0)


@pytest.mark.parametrize("text", ['{"kind": "start"}\n{}\n', "[1]\n[2]\n"])
def test_another_file_is_no_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(BeamError, match="no decision log"):
        list(read_log(path))
    with pytest.raises(BeamError, match="cannot read"):
        list(read_log(tmp_path / "missing"))


def test_a_full_disk_ends_the_log_and_nothing_else(
    log: DecisionLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("beam_runtime.control.decision_log.os.write", full)
    with caplog.at_level(logging.WARNING, logger="beam_runtime"):
        log.write("stop", 1.0)
    assert log.failure == "No space left on device"
    assert "No space left on device" in caplog.text
    log.write("stop", 2.0)
    log.close()


def test_every_line_is_strict_json(log: DecisionLog) -> None:
    log.write("clock", 1.0, error='quo"te\nand line', nan=math.nan, nested=[(math.inf,)])
    log.close()
    lines = log.path.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["nested"] == [[None]]


def test_a_log_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.touch()
    path.chmod(0o666)
    with pytest.raises(BeamError, match="cannot open the decision log") as caught:
        DecisionLog(path)
    assert caught.value.cause == "everybody may write to it"
    assert path.read_bytes() == b""
    path.chmod(0o660)  # a group's, by its own choice
    DecisionLog(path).close()


def test_another_users_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    path.touch()
    theirs, real = os.geteuid() + 7, os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[4] = theirs  # st_uid
        return os.stat_result(fields)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fstat)
        with pytest.raises(BeamError) as caught:
            DecisionLog(path)
    assert caught.value.cause == f"it belongs to user {theirs}, expected {os.geteuid()}"
    # In a folder that is mapped to another user everything is his.
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    DecisionLog(path).close()


@pytest.mark.parametrize(
    "content",
    [b"PAR1\x15\x04" * 40, b'policy = "steer"\n', b"secret", b'{"slo": 1}\n', b"\0" * 99, b"\n"],
)
def test_a_file_of_something_else_is_not_written_to(tmp_path: Path, content: bytes) -> None:
    """A table, settings, a token: one line at its end, and it is none any more."""
    path = tmp_path / "table.parquet"
    path.write_bytes(content)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BeamError, match="cannot open the decision log") as caught:
        DecisionLog(path)
    assert "something else than decisions" in str(caught.value.cause)
    assert path.read_bytes() == content
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


@pytest.mark.parametrize("begun", [b"", b'{"k', b'{"kind": "start", "at_ms": 0}'])
def test_a_log_is_one_however_it_was_begun(tmp_path: Path, begun: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(begun)
    log = DecisionLog(path)
    log.write("stop", 1.0)
    log.close()
    assert path.read_bytes().splitlines()[-1] == b'{"kind":"stop","at_ms":1.0}'
