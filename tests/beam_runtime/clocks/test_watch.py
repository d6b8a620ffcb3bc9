"""What a guard's process does: it sees what counts as an end, and gives back what is left then."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from guard_bench import Bench, bench
from lock_bench import PATIENCE_S

from beam_runtime.clocks.claims import claim
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.clocks.watch import Watch, release
from beam_runtime.errors import ClockError
from beam_runtime.testing.actuator import FakeActuator

__all__ = ["bench"]  # a fixture


def of(owner: Owner, clock_mhz: int | None, gpus: tuple[str, ...] = ("GPU-fake-0",)) -> Holding:
    return Holding(owner, gpus, clock_mhz, "nvml", generation=1)


def give_all_back(actuator: FakeActuator, state: StateFile, lease: Holding) -> bool:
    return release([actuator], state, lease, lambda gpus: [], sleep_s=lambda seconds: None)


class TestRelease:
    """The guard's last act, step by step."""

    def test_a_new_owners_lock_is_left_alone(self, bench: Bench) -> None:
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        claim(bench.state, Owner.current(), ["GPU-fake-0"], "nvml", 1200, generation=2)
        actuator = FakeActuator()
        actuator.set(1200)
        assert give_all_back(actuator, bench.state, of(gone, 1005))
        assert actuator.locked_mhz == [1200]
        assert len(bench.state.read()) == 1

    def test_the_same_process_with_a_newer_lease_is_another(self, bench: Bench) -> None:
        claim(bench.state, Owner.current(), ["GPU-fake-0"], "nvml", 1200, generation=2)
        actuator = FakeActuator()
        actuator.set(1200)
        assert give_all_back(actuator, bench.state, of(Owner.current(), 1200))
        assert actuator.locked_mhz == [1200]

    def test_of_several_gpus_only_those_that_are_left(self, bench: Bench) -> None:
        claim(bench.state, Owner.current(), ["GPU-fake-1"], "nvml", 1200, generation=2)
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        actuator, opened = FakeActuator(gpus=3), FakeActuator()
        asked: list[object] = []
        lease = of(gone, 1005, actuator.gpus)
        assert release(
            [actuator], bench.state, lease,
            lambda gpus: [asked.append(gpus), opened][1:],  # type: ignore[func-returns-value,list-item]
            sleep_s=lambda seconds: None,
        )  # fmt: skip
        assert asked == [["GPU-fake-0", "GPU-fake-2"]]
        assert opened.calls == [("release", 0)]
        assert actuator.calls == []

    def test_a_clock_that_was_not_set_here_is_left_alone(self, bench: Bench) -> None:
        actuator = FakeActuator()
        actuator.set(1200)  # by somebody who keeps no record here
        assert give_all_back(actuator, bench.state, of(Owner.current(), 1005))
        assert actuator.locked_mhz == [1200]

    def test_a_change_that_was_cut_short_is_undone(self, bench: Bench) -> None:
        actuator = FakeActuator()
        actuator.set(1200)  # the one before
        lease = replace(of(Owner.current(), 1005), before_mhz=1200)
        assert give_all_back(actuator, bench.state, lease)
        assert actuator.locked_mhz == [None]

    def test_what_is_not_locked_is_not_touched(self, bench: Bench) -> None:
        actuator = FakeActuator()
        assert give_all_back(actuator, bench.state, of(Owner.current(), None))
        assert actuator.calls == []

    def test_gpus_go_side_by_side(self, bench: Bench) -> None:
        """Each waits until both are at it, and the one that fails keeps the other no longer."""
        both = threading.Barrier(2, timeout=PATIENCE_S)

        class Met(FakeActuator):
            def __init__(self, gpu: str, failures: int) -> None:
                super().__init__()
                self._gpus, self.failures, self.tries = (gpu,), failures, 0

            def release(self, *, orphans: bool = False) -> None:
                self.tries += 1
                if self.tries == 1:
                    both.wait()
                if self.tries <= self.failures:
                    raise ClockError("timeout")
                super().release(orphans=orphans)

        me = Owner.current()
        one, other = Met("GPU-fake-0", 0), Met("GPU-fake-1", 1)
        gpus = (*one.gpus, *other.gpus)
        claim(bench.state, me, gpus, "nvml", 1005, generation=1)
        on_record: list[tuple[str, ...]] = []

        def pause(seconds: float) -> None:
            on_record.extend(lease.gpus for lease in bench.state.read())

        assert release(
            [one, other], bench.state, of(me, 1005, gpus), lambda gpus: [], at_once=2,
            sleep_s=pause,
        )  # fmt: skip
        assert (one.tries, other.tries) == (1, 2)
        assert on_record == [gpus, other.gpus], "each is off the record when it is free"
        assert bench.state.read() == ()

    def test_it_tries_again(self, bench: Bench) -> None:
        class Slow(FakeActuator):
            failures = 2

            def release(self, *, orphans: bool = False) -> None:
                self.failures -= 1
                if self.failures >= 0:
                    raise ClockError("timeout")
                super().release(orphans=orphans)

        me = Owner.current()
        actuator = Slow()
        actuator.set(1005)
        claim(bench.state, me, actuator.gpus, "nvml", 1005, generation=1)
        pauses: list[float] = []
        assert release(
            [actuator], bench.state, of(me, 1005), lambda gpus: [], sleep_s=pauses.append
        )
        assert actuator.locked_mhz == [None]
        assert len(pauses) == 3
        assert bench.state.read() == ()

    @pytest.mark.parametrize(
        "text",
        [
            "", "{", "[" * 100_000, '{"version": 2, "holdings": []}', '{"version": 9}',
            '{"version": 1, "holdings": [{"owner": {"pid": 1e999}}]}',
        ],
    )  # fmt: skip
    def test_no_record_says_that_nothing_is_locked(self, bench: Bench, text: str) -> None:
        bench.state.folder.mkdir(parents=True, mode=0o700)
        bench.state.path.write_text(text)
        actuator = FakeActuator()
        actuator.set(1005)
        assert give_all_back(actuator, bench.state, of(Owner.current(), 1005))
        assert actuator.locked_mhz == [None]
        assert bench.state.path.read_text() == text

    def test_it_says_when_it_could_not(self, bench: Bench) -> None:
        class Lost(FakeActuator):
            def release(self, *, orphans: bool = False) -> None:
                raise ClockError("GPU is lost")

        me = Owner.current()
        claim(bench.state, me, ["GPU-fake-0"], "nvml", 1005, generation=1)
        assert not give_all_back(Lost(), bench.state, of(me, 1005))
        assert len(bench.state.read()) == 1, "doctor will find it"


class TestWatch:
    """What counts as an end."""

    def watch(self, owner: Owner, said: bytes, *, timeout_s: float = 60.0, **more: float) -> Watch:
        reader, self.writer = os.pipe()
        os.write(self.writer, said)
        return Watch(of(owner, None), reader, timeout_s, **more)

    def test_a_clean_end(self) -> None:
        assert self.watch(Owner.current(), b".\nset 1005\nreturned\nfree\nquit\n").wait() == ""

    def test_silence_while_something_is_locked(self) -> None:
        said = self.watch(Owner.current(), b"set 1005\nreturned\n", timeout_s=0.0).wait()
        assert "no heartbeat" in said

    def test_a_set_that_does_not_return(self) -> None:
        watch = self.watch(Owner.current(), b"set 735\nreturned\nset 1005\n", hang_s=0.05)
        assert "does not return" in watch.wait()
        assert watch.memory.lease.clocks_mhz == (1005, 735), "either may be in force"

    def test_what_is_no_message_changes_nothing(self) -> None:
        nonsense = b"set " + b"9" * 5000 + b"\nset -1\nset\nsets 5\n\xff\xfe\n"
        watch = self.watch(Owner.current(), b"set 735\nreturned\n" + nonsense + b"free\nquit\n")
        assert watch.wait() == ""
        said = self.watch(Owner.current(), b"set 735\nreturned\n" + nonsense, timeout_s=0.2)
        assert "no heartbeat" in said.wait()
        assert said.memory.lease.clock_mhz == 735

    def test_an_owner_that_was_dead_before(self) -> None:
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        assert "dead" in self.watch(gone, b"").wait()

    def test_the_last_words_of_the_dead_count(self) -> None:
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        watch = self.watch(gone, b".\n" * 20_000 + b"set 1005\n")
        assert "dead" in watch.wait()
        assert watch.memory.lease.clock_mhz == 1005

    def test_a_closed_pipe(self) -> None:
        watch = self.watch(Owner.current(), b"set 1005\n")
        os.close(self.writer)
        assert "closed its end" in watch.wait()

    def test_afterwards_it_waits_for_a_set_that_is_under_way(self) -> None:
        """Its owner may be stopped in the middle of a driver call, and killed then."""
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        ticks = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        owner = Owner(child.pid, ticks, Owner.current().boot_id)
        watch = self.watch(owner, b"set 1005\n", hang_s=0.0)
        assert "does not return" in watch.wait()
        child.kill()
        child.communicate()
        assert watch.linger()
