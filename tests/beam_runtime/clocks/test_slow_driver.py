"""A driver call that hangs, or takes its time, keeps neither the GPUs nor the process."""

import signal

import pytest
from lock_bench import PATIENCE_S, LockBench, bench, wait_for

__all__ = ["bench"]  # a fixture


class TestDriverCallsThatHang:
    """A call that does not return keeps neither the GPUs nor the process."""

    SET = "nvmlDeviceSetGpuLockedClocks"

    def test_the_guard_gives_back_what_a_hung_change_left(self, bench: LockBench) -> None:
        owner = bench.holder(735, "GPU-0", "GPU-1")
        bench.board.hang(self.SET, gpu=1, pid=owner.pid)
        assert bench.wish(owner, 960).startswith("ClockHangsError 960")
        bench.free()
        assert owner.poll() is None, "its engine serves on"

    def test_sigterm_ends_it_all_the_same(self, bench: LockBench) -> None:
        owner = bench.holder(735)
        bench.board.hang(self.SET, pid=owner.pid)
        assert owner.stdin is not None
        owner.stdin.write("960\n")
        owner.stdin.flush()
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(PATIENCE_S) == -signal.SIGTERM
        bench.free()

    def test_in_the_main_thread_too(self, bench: LockBench) -> None:
        program = """
            import time
            from beam_runtime.clocks.guarded import GuardedActuator
            from beam_runtime.clocks.lock import ClockLock
            from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
            spec = ActuatorSpec(ActuatorKind.NVML, ("GPU-0",))
            with ClockLock(GuardedActuator(spec.open(), spec)) as lock:
                lock.set(735)
                print("set", flush=True)
                input()
                lock.set(960)
        """
        owner = bench.start(program)
        assert bench.heard(owner) == "set"
        bench.board.hang(self.SET, pid=owner.pid)
        assert owner.stdin is not None
        owner.stdin.write("\n")
        owner.stdin.flush()
        owner.send_signal(signal.SIGTERM)
        owner.wait(PATIENCE_S)
        bench.free()

    def test_what_returns_after_all_is_undone(self, bench: LockBench) -> None:
        owner = bench.holder(735)
        bench.board.script(self.SET, delay_s=3.0, pid=owner.pid)
        assert bench.wish(owner, 960).startswith("ClockHangsError 960")
        wait_for(lambda: 960 in [entry["clock_mhz"] for entry in bench.board.history()])
        bench.free()

    def test_killed_in_the_middle_of_it(self, bench: LockBench) -> None:
        """Stopped, given up on, and killed once the call has taken effect."""
        owner = bench.holder(735)
        bench.board.script(self.SET, delay_s=2.0, pid=owner.pid)
        assert bench.wish(owner, 960).startswith("ClockHangsError 960")
        wait_for(lambda: bench.board.locked() == {"GPU-0": 960} or not bench.board.locked())
        owner.kill()
        owner.wait()
        bench.free()


@pytest.mark.parametrize("how", ["SIGTERM", "exit", "close"])
def test_a_child_that_is_forked_in_the_middle_of_a_set_ends_and_touches_nothing(
    bench: LockBench, how: str
) -> None:
    program = """
        import os, signal, sys, time
        from beam_runtime.clocks.guarded import GuardedActuator
        from beam_runtime.clocks.setter import ClockSetter
        from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
        spec = ActuatorSpec(ActuatorKind.NVML, ("GPU-0",))
        outcomes = []
        setter = ClockSetter(GuardedActuator(spec.open(), spec), outcomes.append)
        setter.open()
        setter.want(960)
        while not outcomes:
            time.sleep(0.01)
        setter.want(735)
        time.sleep(0.1)  # of the third of a second that the set takes
        child = os.fork()
        if child == 0:
            if sys.argv[1] == "exit":
                sys.exit(0)
            if sys.argv[1] == "close":
                setter.want(510)
                setter.close()
                os._exit(0)
            time.sleep(60)
        if sys.argv[1] == "SIGTERM":
            time.sleep(0.1)
            os.kill(child, signal.SIGTERM)
        print(os.waitpid(child, 0)[1], flush=True)
        while len(outcomes) < 2:
            time.sleep(0.01)
        print(outcomes[1].error, flush=True)
        input()
    """
    bench.board.script("nvmlDeviceSetGpuLockedClocks", delay_s=0.35)
    process = bench.start(program, how)
    assert bench.heard(process) == ("15" if how == "SIGTERM" else "0")
    assert bench.heard(process) == "None"
    assert bench.board.locked() == {"GPU-0": 735}
    assert {entry["pid"] for entry in bench.board.history()} == {process.pid}
