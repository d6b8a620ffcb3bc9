"""Whose lock it is, between real processes: nobody's lock is removed but one's own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lock_bench import PATIENCE_S, LockBench, bench, children, wait_for

from beam_runtime.clocks.claims import claim, restore, take, turn
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.orphans import release_orphan
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError, ClockLostError
from beam_runtime.testing.nvml_file import FileNvml

__all__ = ["bench"]
BOTH = {"GPU-0": 960, "GPU-1": 960}


def nvml_of(bench: LockBench) -> FileNvml:
    return FileNvml(bench.board.path)


def test_an_owner_that_was_stopped_finds_its_lease_over(bench: LockBench) -> None:
    first = bench.holder(735)
    first.send_signal(signal.SIGSTOP)
    bench.free()
    bench.holder(960)
    first.send_signal(signal.SIGCONT)
    assert "gave the GPUs back: no heartbeat" in _until(bench, first, "cause: process")
    assert bench.wish(first, 1185).startswith("ClockError 1185 GPU GPU-0 is held by process")
    assert bench.board.locked() == {"GPU-0": 960}
    first.kill()
    first.wait()
    assert bench.board.locked() == {"GPU-0": 960}, "nor does its guard touch it"


def _until(bench: LockBench, process: "subprocess.Popen[str]", words: str) -> str:
    while words not in (line := bench.heard(process)):
        assert process.poll() is None
    return line


@pytest.mark.usefixtures("mortal_children")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_whoever_took_over_is_left_alone_whatever_ends_the_first(
    bench: LockBench, ending: signal.Signals
) -> None:
    first = bench.holder(735)
    first.send_signal(signal.SIGSTOP)
    bench.free()
    bench.holder(960)
    first.send_signal(ending)
    first.send_signal(signal.SIGCONT)
    first.wait(PATIENCE_S)
    assert bench.board.locked() == {"GPU-0": 960}


def test_another_users_lock_is_left_alone_without_a_common_record(bench: LockBench) -> None:
    """Nothing but the clock tells that the GPU is locked."""
    bench.holder(960)
    second = bench.start(_holder_words(), 735, BEAM_STATE_DIR=str(bench.folder / "another user's"))
    said = bench.heard(second)
    assert said.startswith("ClockError 735 GPU GPU-0 is locked at 960 MHz by somebody unknown")
    assert bench.board.locked() == {"GPU-0": 960}


def test_a_lock_of_another_tool_on_ones_own_gpu_stays(bench: LockBench) -> None:
    owner = bench.holder(735)
    wait_for(lambda: bench.state.read()[0].confirmed)
    nvml_of(bench).nvmlDeviceSetGpuLockedClocks(0, 960, 960)  # nvidia-smi -lgc
    assert bench.wish(owner, 1185).startswith("ClockLostError 1185")
    assert bench.board.locked() == {"GPU-0": 960}
    owner.kill()
    owner.wait()
    assert bench.board.locked() == {"GPU-0": 960}
    nvml_of(bench).nvmlDeviceResetGpuLockedClocks(0)


def test_of_two_gpus_the_one_that_is_left_is_given_back(bench: LockBench) -> None:
    owner = bench.holder(735, "GPU-0", "GPU-1")
    wait_for(lambda: bench.state.read()[0].confirmed)
    nvml_of(bench).nvmlDeviceSetGpuLockedClocks(1, 960, 960)
    owner.kill()
    owner.wait()
    wait_for(lambda: bench.board.locked() == {"GPU-1": 960})
    nvml_of(bench).nvmlDeviceResetGpuLockedClocks(1)


def test_an_orphan_is_compared_before_it_is_freed(bench: LockBench) -> None:
    owner = bench.holder(735, "GPU-0", "GPU-1")
    wait_for(lambda: bench.state.read()[0].confirmed)
    _kill_with_guard(owner)
    nvml_of(bench).nvmlDeviceSetGpuLockedClocks(1, 960, 960)
    spec = ActuatorSpec(ActuatorKind.NVML, ("GPU-0", "GPU-1"))

    def release(holding: Holding) -> dict[str, str]:
        return _with_fake(bench, lambda: release_orphan(holding, bench.state))

    (done,) = restore(bench.state, release)
    assert done.error is None
    assert done.others == (("GPU-1", "at 960 MHz, which was not set here"),)
    assert bench.board.locked() == {"GPU-1": 960}
    assert bench.state.read() == ()
    assert spec.gpus == done.holding.gpus
    nvml_of(bench).nvmlDeviceResetGpuLockedClocks(1)


def _with_fake(bench: LockBench, call: Callable[[], dict[str, str]]) -> dict[str, str]:
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = nvml_of(bench)  # type: ignore[assignment]
    try:
        return call()
    finally:
        sys.modules.pop("pynvml")
        if before is not None:
            sys.modules["pynvml"] = before


def _kill_with_guard(owner: "subprocess.Popen[str]") -> None:
    guards = children(owner.pid)
    assert guards
    owner.send_signal(signal.SIGSTOP)
    for guard in guards:
        os.kill(guard, signal.SIGKILL)
    owner.kill()
    owner.wait()


def test_both_die_at_once_and_the_next_start_frees_and_locks(bench: LockBench) -> None:
    owner = bench.holder(735, "GPU-0", "GPU-1")
    _kill_with_guard(owner)
    assert bench.board.locked() == {"GPU-0": 735, "GPU-1": 735}
    bench.holder(960, "GPU-0")
    assert bench.board.locked() == {"GPU-0": 960}


def test_a_lost_gpu_keeps_no_other_locked(bench: LockBench) -> None:
    owner = bench.holder(735, "GPU-0", "GPU-1")
    _kill_with_guard(owner)
    bench.board.change(0, lost=True)
    done = subprocess.run(
        [sys.executable, "-m", "beamprof", "doctor", "--restore"],
        env={**os.environ, **bench.board.env, "BEAM_STATE_DIR": str(bench.state.folder)},
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert bench.board.locked() == {"GPU-0": 735}
    assert bench.state.read(), "the lost one stays on record"
    bench.board.change(0, lost=False, lock_mhz=None)


@pytest.mark.parametrize("loss", ["file", "folder", "emptied", "cut", "nested", "of the future"])
def test_the_guard_knows_by_itself(bench: LockBench, loss: str) -> None:
    owner = bench.holder(960, "GPU-0", "GPU-1")
    owner.send_signal(signal.SIGSTOP)
    record = bench.state.path
    match loss:
        case "file":
            record.unlink()
        case "folder":
            shutil.rmtree(bench.state.folder)
        case "emptied":
            record.write_text('{"version": 1, "holdings": []}')
        case "cut":
            record.write_bytes(record.read_bytes()[:100])
        case "nested":
            record.write_text("[" * 100_000)
        case "of the future":
            record.write_text('{"version": 3, "holdings": []}')
    assert bench.board.locked() == BOTH
    owner.kill()
    owner.wait()
    bench.free()


def test_a_removed_record_is_made_anew_by_the_next_set(bench: LockBench) -> None:
    owner = bench.holder(960)
    shutil.rmtree(bench.state.folder)
    assert bench.wish(owner, 735) == "set 735"
    (holding,) = bench.state.read()
    assert (holding.owner.pid, holding.clock_mhz) == (owner.pid, 735)


def test_a_second_lease_in_the_same_process_is_refused(tmp_path: Path) -> None:
    state, me = StateFile(tmp_path / "state"), Owner.current()
    lease, presence = take(state, me, ["GPU-0"], "nvml")
    with pytest.raises(ClockError, match=f"held by process {me.pid}"):
        take(state, me, ["GPU-0", "GPU-1"], "nvml")
    presence.end()
    assert lease.generation == 1


def test_generations_grow_also_where_the_record_was_lost(tmp_path: Path) -> None:
    state, me = StateFile(tmp_path / "state"), Owner.current()
    numbers, presences = [], []
    for gpu in ("GPU-0", "GPU-1", "GPU-2"):
        lease, presence = take(state, me, [gpu], "nvml")
        numbers.append(lease.generation)
        presences.append(presence)
        state.path.unlink()
    assert numbers == [1, 2, 3]
    for presence in presences:
        presence.end()


class TestAnotherContainer:
    """Its pids mean nothing here; its presence does."""

    def owner(self) -> Owner:
        return replace(Owner.current(), pid=7, started_ticks=1, namespace=1, host="box")

    def test_it_is_alive_while_it_shows(self, bench: LockBench) -> None:
        bench.holder(960)
        wait_for(lambda: bench.state.read()[0].confirmed)
        with bench.state.change() as record:  # as a container would have it on record
            record[:] = [replace(one, owner=self.owner()) for one in record]
        second = bench.start(_holder_words(), 735)
        assert "is held by process 7 of box" in bench.heard(second)
        assert bench.board.locked() == {"GPU-0": 960}
        nvml_of(bench).nvmlDeviceResetGpuLockedClocks(0)  # on record it is another's now

    def test_it_is_dead_when_it_shows_no_more(self, bench: LockBench) -> None:
        owner = bench.holder(960)
        wait_for(lambda: bench.state.read()[0].confirmed)
        with bench.state.change() as record:
            record[:] = [replace(one, owner=self.owner()) for one in record]
        _kill_with_guard(owner)
        bench.holder(735)
        assert bench.board.locked() == {"GPU-0": 735}

    def test_what_cannot_be_told_is_left_alone(self, tmp_path: Path) -> None:
        state = StateFile(tmp_path / "state")
        claim(state, self.owner(), ["GPU-0"], "nvml", 960, generation=5)
        released: list[Holding] = []
        assert restore(state, released.append) == []  # type: ignore[arg-type]
        assert released == []
        with pytest.raises(ClockError, match="held by process 7 of box"):
            take(state, Owner.current(), ["GPU-0"], "nvml")

    def test_a_machine_that_shares_the_folder_keeps_its_entries(self, tmp_path: Path) -> None:
        state = StateFile(tmp_path / "state")
        there = replace(self.owner(), boot_id="of another machine")
        claim(state, there, ["GPU-far"], "nvml", 960, generation=5)
        assert restore(state, lambda holding: None) == []
        assert len(state.read()) == 1


def test_who_sits_on_his_turn_is_not_waited_for_for_ever(bench: LockBench) -> None:
    owner = bench.holder(960)
    with turn(bench.state, ["GPU-0"]):
        owner.kill()
        owner.wait()
        bench.free()


def test_an_engine_with_thousands_of_open_files(bench: LockBench) -> None:
    program = """
        import os, resource, sys
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 1300), most))
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        from beam_runtime.clocks.guarded import GuardedActuator
        from beam_runtime.clocks.lock import ClockLock
        from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
        spec = ActuatorSpec(ActuatorKind.NVML, ("GPU-0",))
        with ClockLock(GuardedActuator(spec.open(), spec)) as lock:
            lock.set(735)
            print("set", flush=True)
    """
    process = bench.start(program)
    out, said = process.communicate(timeout=PATIENCE_S)
    assert (out, process.returncode) == ("set\n", 0), said


def test_a_guard_that_was_killed_is_replaced_and_the_clock_set_anew(bench: LockBench) -> None:
    """Also where an idle GPU reads low and says why: that shows no lock."""
    bench.board.change(0, idle=True)
    owner = bench.holder(735)
    (guard,) = children(owner.pid)
    os.kill(guard, signal.SIGKILL)
    assert "it was killed" in _until(bench, owner, "cause: process")
    bench.free()
    assert bench.wish(owner, 735) == "set 735"
    assert bench.board.locked() == {"GPU-0": 735}
    assert children(owner.pid) not in ([], [guard])


def test_a_lease_that_was_lost_in_between_is_no_repeated_clock(tmp_path: Path) -> None:
    """The same clock is asked for again, and reads as asked for: but it is another's."""
    from beam_runtime.clocks.file_gpus import FileGpus

    file, state = tmp_path / "gpus.json", StateFile(tmp_path / "state")
    FileGpus.create(file)
    spec = ActuatorSpec(ActuatorKind.FILE, file=str(file))
    actuator = GuardedActuator(FileGpus(file), spec, state)
    lock = ClockLock(actuator)
    lock.set(735)
    other = subprocess.Popen(["sleep", "60"])
    ticks = int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])
    owner = replace(Owner.current(), pid=other.pid, started_ticks=ticks)
    with state.change() as record:
        record[:] = [Holding(owner, FileGpus(file).gpus, 735, spec.name, generation=9)]
    try:
        with pytest.raises(ClockLostError, match="another's by now"):
            lock.set(735)
        assert FileGpus.locked(file) == {"GPU-file-0": 735}
    finally:
        other.kill()
        other.wait()
        lock.close()
        actuator.close()


def _holder_words() -> str:
    from lock_bench import HOLDER

    return HOLDER


def test_nothing_is_locked_where_the_record_cannot_be_kept(
    bench: LockBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.state.folder.mkdir(mode=0o700)
    bench.state.folder.chmod(0o777)
    second = bench.start(_holder_words(), 735)
    assert "everybody may write to" in bench.heard(second)
    assert bench.board.locked() == {}
    assert NvmlGpus(["GPU-0"], nvml=nvml_of(bench)).gpus == ("GPU-0",)
