"""A replica over three machines on record and under guard: whoever dies, each node is freed."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lock_bench import wait_for
from node_cluster import FREE, Cluster, cluster

from beam_runtime.clocks.claims import claim, orphans, restore
from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.orphans import release_orphan
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.state_file import Holding
from beam_runtime.clocks.zeusd_node import ZeusdNode
from beam_runtime.errors import ClockError
from beam_runtime.testing.nvml import FakeNvml
from beamprof.doctor.diagnose import diagnose

__all__ = ["cluster"]  # a fixture


class TestOnRecord:
    """Each machine's GPUs by themselves."""

    def test_a_lock_is_on_record_for_each_machine(self, cluster: Cluster) -> None:
        actuator = GuardedActuator(cluster.open(), cluster.spec, cluster.state)
        actuator.set(1005)
        assert [(one.gpus, one.clock_mhz, one.actuator) for one in cluster.state.read()] == [
            (FileGpus(cluster.file).gpus, 1005, f"file:{cluster.file}"),
            (cluster.near.names(0, 1), 1005, f"node:{cluster.near.place}"),
            (cluster.far.names(0, 1), 1005, f"node:{cluster.far.place}"),
        ]
        actuator.close()
        assert cluster.locked == (FREE,) * 3
        assert cluster.state.read() == ()

    def test_a_second_controller_is_refused(self, cluster: Cluster) -> None:
        other = subprocess.Popen(["sleep", "60"])
        try:
            owner = replace(Owner.current(), pid=other.pid, started_ticks=_ticks(other.pid))
            claim(cluster.state, owner, cluster.far.names(1), "nvml", 1005)
            actuator = GuardedActuator(cluster.open(), cluster.spec, cluster.state)
            with pytest.raises(ClockError, match=f"is held by process {other.pid}"):
                actuator.set(1005)
        finally:
            other.kill()
            other.wait()
        assert cluster.locked == (FREE,) * 3

    def test_a_reboot_of_this_machine_frees_its_own_gpus_only(self, cluster: Cluster) -> None:
        gone = Owner(1, 1, "the boot before")
        claim(cluster.state, gone, cluster.spec.gpus, cluster.spec.name, 1005)
        for daemon in (cluster.near, cluster.far):
            for gpu in daemon.nvml.gpus:
                gpu.lock_mhz = 1005
        lost = orphans(cluster.state, cluster.state.read())
        assert [one.gpus for one in lost] == [cluster.near.names(0, 1), cluster.far.names(0, 1)]
        found = diagnose(restore_orphans=True, state=cluster.state, nvml=FakeNvml([]))
        assert [lock.state for lock in found.locks] == ["void", "released", "released"]
        assert cluster.locked == (FREE,) * 3
        assert cluster.state.read() == ()

    def test_a_node_that_is_down_stays_on_record_alone(self, cluster: Cluster) -> None:
        cluster.open().set(1005)
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        claim(cluster.state, gone, cluster.spec.gpus, cluster.spec.name, 1005)
        cluster.far.stop()
        done = restore(cluster.state, release_orphan)
        assert [one.error is None for one in done] == [True, True, False]
        assert cluster.locked == (FREE, FREE, [1005, 1005])
        assert [one.gpus for one in cluster.state.read()] == [cluster.far.names(0, 1)]
        # Who steers the others meanwhile is not stopped by it.
        spec = replace(cluster.spec, gpus=(*cluster.spec.gpus[:2], *cluster.near.names(0, 1)))
        others = GuardedActuator(spec.open(), spec, cluster.state)
        others.set(1110)
        others.close()
        assert cluster.locked == (FREE, FREE, [1005, 1005])
        cluster.far.start()
        restore(cluster.state, release_orphan)
        assert cluster.locked == (FREE,) * 3
        assert cluster.state.read() == ()


OWNER = """
    import sys, time
    from pathlib import Path
    from beam_runtime.clocks.guarded import GuardedActuator
    from beam_runtime.clocks.lock import ClockLock
    from beam_runtime.clocks.spec import ActuatorSpec
    from beam_runtime.clocks.state_file import StateFile

    spec = ActuatorSpec.from_json(sys.argv[1])
    lock = ClockLock(GuardedActuator(spec.open(), spec, StateFile(Path(sys.argv[2]))))
    lock.set(1005)
    print("locked", flush=True)
    time.sleep(600)
"""


class TestGuard:
    """The owner is killed; its guard is a process of its own, and so is the network."""

    def kill_an_owner(self, cluster: Cluster, before: Callable[[], object] = lambda: None) -> None:
        process = subprocess.Popen(
            [
                sys.executable, "-c", textwrap.dedent(OWNER),
                cluster.spec.to_json(), str(cluster.state.folder),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        assert cluster.locked == ([1005, 1005],) * 3
        before()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()

    def test_it_frees_every_node(self, cluster: Cluster) -> None:
        self.kill_an_owner(cluster)
        wait_for(lambda: cluster.locked == (FREE,) * 3 and not cluster.state.read())

    def test_it_frees_the_others_and_tries_a_node_again_until_it_is_back(
        self, cluster: Cluster
    ) -> None:
        self.kill_an_owner(cluster, cluster.far.stop)
        wait_for(lambda: cluster.locked[:2] == (FREE, FREE))
        wait_for(lambda: len(cluster.state.read()) == 1)
        (left,) = cluster.state.read()
        assert (left.gpus, left.clock_mhz) == (cluster.far.names(0, 1), 1005)
        assert cluster.far.nvml.locked == [1005, 1005]
        cluster.far.start()
        wait_for(lambda: cluster.locked == (FREE,) * 3 and not cluster.state.read())

    def test_a_node_that_hangs_keeps_nobody_else(self, cluster: Cluster) -> None:
        self.kill_an_owner(cluster, cluster.far.hung.clear)
        wait_for(lambda: cluster.locked[:2] == (FREE, FREE))
        cluster.far.hung.set()
        wait_for(lambda: cluster.locked == (FREE,) * 3 and not cluster.state.read())


def test_a_record_is_enough_to_release_a_node(cluster: Cluster) -> None:
    ZeusdNode(cluster.far.names(0)).begin_set(1005)()
    holding = Holding(Owner.current(), cluster.far.names(0), 1005, f"node:{cluster.far.place}")
    release_orphan(holding)
    assert cluster.far.nvml.locked == FREE


def _ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
