"""A replica over three machines: this one, with GPUs in a file, and two with a zeusd each."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fault_zeusd import Zeusd, serving

from beam_runtime.clocks import zeusd_client
from beam_runtime.clocks.base import ClockActuator
from beam_runtime.clocks.choose import Choice
from beam_runtime.clocks.claims import claim, orphans, restore
from beam_runtime.clocks.file_gpus import MODEL, FileGpus
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nodes import AcrossNodes
from beam_runtime.clocks.orphans import release_orphan
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.places import by_place, node_of
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.clocks.zeusd_node import ZeusdNode
from beam_runtime.control import resources
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.nvml import FakeNvml, fake_gpus
from beamprof.doctor.diagnose import diagnose

PATIENCE_S = 20.0
FREE = [None, None]


class Cluster:
    """This machine's two GPUs, and two of each of two other nodes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "gpus.json"
        FileGpus.create(self.file, 2)
        self.state = StateFile(folder / "state")
        self.near, self.far = (Zeusd(FakeNvml(fake_gpus(2))) for _ in range(2))

    @property
    def spec(self) -> ActuatorSpec:
        own = FileGpus(self.file).gpus
        gpus = (*own, *self.near.names(0, 1), *self.far.names(0, 1))
        return ActuatorSpec(ActuatorKind.FILE, gpus, file=str(self.file))

    def open(self) -> ClockActuator:
        return self.spec.open()

    @property
    def locked(self) -> tuple[list[int | None], list[int | None], list[int | None]]:
        own = FileGpus.locked(self.file)
        here = [own.get(gpu) for gpu in FileGpus(self.file).gpus]
        return here, self.near.nvml.locked, self.far.nvml.locked


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(zeusd_client, "TIMEOUT_S", 0.3)
    monkeypatch.delenv("ZEUSD_TOKEN", raising=False)
    found = Cluster(tmp_path)
    with serving(found.near, found.far):
        yield found


def wait_for(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert what()


def test_names_tell_where_a_gpu_is() -> None:
    assert [node_of(gpu) for gpu in (3, "GPU-8f", "node2:4938/0", "[::1]:4938/12")] == [
        "", "", "node2:4938", "[::1]:4938",
    ]  # fmt: skip
    gpus = ("b:1/0", "GPU-1", "a:1/0", 0, "b:1/1")
    assert by_place(gpus) == {"": ("GPU-1", 0), "b:1": ("b:1/0", "b:1/1"), "a:1": ("a:1/0",)}


def test_all_are_set_read_back_as_far_as_can_be_and_released(cluster: Cluster) -> None:
    actuator = cluster.open()
    assert actuator.gpus == cluster.spec.gpus
    assert 1005 in actuator.supported_clocks_mhz()
    with ClockLock(actuator) as lock:
        readings = lock.set(1005)
        assert [reading.clock_mhz for reading in readings] == [1005, 1005], "this machine's"
        assert cluster.locked == ([1005, 1005],) * 3
        lock.set(1200)
        assert cluster.locked == ([1200, 1200],) * 3
    assert cluster.locked == (FREE,) * 3
    assert cluster.far.requests == [
        "/discover",
        "/gpu/set_gpu_locked_clocks?gpu_ids=0%2C1&min_clock_mhz=1005&max_clock_mhz=1005&block=true",
        "/gpu/set_gpu_locked_clocks?gpu_ids=0%2C1&min_clock_mhz=1200&max_clock_mhz=1200&block=true",
        "/gpu/reset_gpu_locked_clocks?gpu_ids=0%2C1&block=true",
    ]


def test_nodes_are_asked_at_once_and_then_waited_for(cluster: Cluster) -> None:
    actuator = cluster.open()
    actuator.supported_clocks_mhz()
    cluster.near.hung.clear()
    cluster.far.hung.clear()
    with pytest.raises(ClockError):
        actuator.set(1005)
    for daemon in (cluster.near, cluster.far):
        assert [path.partition("?")[0] for path in daemon.requests] == [
            "/discover", "/gpu/set_gpu_locked_clocks", "/gpu/reset_gpu_locked_clocks",
        ]  # fmt: skip


def refused(far: Zeusd) -> None:
    far.stop()


def hung(far: Zeusd) -> None:
    far.hung.clear()


def dies(far: Zeusd) -> None:
    far.dies = True


def babbles(far: Zeusd) -> None:
    far.babbles = True


def fails(far: Zeusd) -> None:
    far.answer = (500, "NVML: unknown error")


def wants_another_token(far: Zeusd) -> None:
    far.token = "renewed"


@pytest.mark.parametrize("fault", [refused, hung, dies, babbles, fails, wants_another_token])
def test_one_node_of_two_fails_and_nobody_else_stays_locked(
    cluster: Cluster, fault: Callable[[Zeusd], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = ClockLock(cluster.open())
    lock.set(1005)
    fault(cluster.far)
    with pytest.raises(ClockError, match=cluster.far.place):
        lock.set(1200)
    assert cluster.locked[:2] == (FREE, FREE)
    # Whatever it did meanwhile, it is asked again as soon as somebody wants it released.
    cluster.far.hung.set()
    cluster.far.dies = cluster.far.babbles = False
    cluster.far.answer = None
    monkeypatch.setenv("ZEUSD_TOKEN", "renewed")
    if fault is refused:
        cluster.far.start()
    wait_for(lambda: _frees(lock, cluster))
    assert lock.set(1110)
    lock.close()
    assert cluster.locked == (FREE,) * 3


def _frees(lock: ClockLock, cluster: Cluster) -> bool:
    """A daemon that hung may set its lock late: once it has, a release frees it for good."""
    time.sleep(0.05)
    lock.release()
    lock._locked = True  # ask again until nothing is left of what it was slow to do
    return cluster.locked == (FREE,) * 3


def test_every_failure_is_told(cluster: Cluster) -> None:
    actuator = cluster.open()
    actuator.set(1005)
    cluster.near.answer, cluster.far.answer = (500, "no"), (500, "neither")
    with pytest.raises(ClockError) as caught:
        actuator.release()
    assert cluster.near.place in str(caught.value)
    assert cluster.far.place in "".join(caught.value.__notes__)
    assert cluster.locked == (FREE, [1005, 1005], [1005, 1005])


class Here(FakeActuator):
    """This machine's GPUs, which may refuse."""

    def models(self) -> tuple[str, ...]:
        return (MODEL,) * len(self.gpus)


@pytest.mark.parametrize("error", [ClockError("the driver failed"), ClockPermissionError("no")])
def test_this_machines_failure_frees_the_others(cluster: Cluster, error: ClockError) -> None:
    here = Here(gpus=2)
    lock = ClockLock(AcrossNodes(here, [ZeusdNode(cluster.near.names(0, 1))]))
    lock.set(1005)
    assert cluster.near.nvml.locked == [1005, 1005]
    here.refuse = error
    with pytest.raises(type(error)):
        lock.set(1200)
    assert here.locked_mhz == cluster.near.nvml.locked == FREE


class TestBeforeTheFirstLock:
    """What cannot work is told when the clocks are opened."""

    def test_an_unsupported_clock_never_travels(self, cluster: Cluster) -> None:
        with pytest.raises(ClockUnavailableError, match="do not offer 1000 MHz"):
            cluster.open().set(1000)
        assert cluster.near.requests == cluster.far.requests == ["/discover"]

    def test_another_kind_of_gpu(self, cluster: Cluster) -> None:
        cluster.far.nvml.gpus[1].name = "NVIDIA H100 80GB HBM3"
        with pytest.raises(ClockUnavailableError, match="/1 is NVIDIA H100 80GB HBM3, expected"):
            cluster.open().supported_clocks_mhz()

    def test_a_gpu_that_is_not_there(self, cluster: Cluster) -> None:
        spec = replace(cluster.spec, gpus=(*cluster.spec.gpus, *cluster.far.names(2)))
        with pytest.raises(ClockUnavailableError, match="/2 is not there"):
            spec.open().supported_clocks_mhz()

    def test_a_daemon_that_only_reads(self, cluster: Cluster) -> None:
        cluster.far.groups = ["gpu-read"]
        with pytest.raises(ClockUnavailableError, match="sets no clocks"):
            cluster.open().supported_clocks_mhz()

    def test_no_token(self, cluster: Cluster) -> None:
        cluster.far.token = "secret"
        with pytest.raises(ClockPermissionError, match="refuses /auth/whoami"):
            cluster.open().supported_clocks_mhz()

    def test_a_token_for_reading(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ZEUSD_TOKEN", "secret")
        cluster.far.token, cluster.far.scopes = "secret", ["gpu-read"]
        with pytest.raises(ClockPermissionError, match="not for clocks"):
            cluster.open().supported_clocks_mhz()

    def test_the_right_token(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ZEUSD_TOKEN", "secret")
        cluster.far.token = "secret"
        cluster.open().set(1005)
        assert set(cluster.far.tokens) == {"Bearer secret"}
        assert cluster.far.nvml.locked == [1005, 1005]

    @pytest.mark.parametrize("token", ["line\nbreak", "日本"])
    def test_a_token_that_no_header_can_carry(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, token: str
    ) -> None:
        monkeypatch.setenv("ZEUSD_TOKEN", token)
        with pytest.raises(ClockError):
            cluster.open().supported_clocks_mhz()

    @pytest.mark.parametrize("answer", ["", "[]", '{"gpus": 3}', '{"gpus": [{"name": "A100"}]}'])
    def test_something_else_listens_there(self, cluster: Cluster, answer: str) -> None:
        cluster.far.answer = (200, answer)
        with pytest.raises(ClockError, match=cluster.far.place):
            cluster.open().supported_clocks_mhz()

    def test_a_name_that_nobody_knows(self, cluster: Cluster) -> None:
        spec = replace(cluster.spec, gpus=(*cluster.spec.gpus, "no.such.host.invalid:4938/0"))
        with pytest.raises(ClockError, match=r"answer at no\.such\.host\.invalid:4938"):
            spec.open().supported_clocks_mhz()

    def test_the_other_knobs_still_turn(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choice = Choice(cluster.spec, "a test says so")
        monkeypatch.setattr(resources, "choose_actuator", lambda gpus: choice)
        actuator, why = resources.open_clocks(cluster.spec.gpus)
        assert actuator is not None
        assert cluster.far.place in why
        cluster.far.stop()
        actuator, why = resources.open_clocks(cluster.spec.gpus)
        assert actuator is None
        assert why.startswith(
            f"clocks stay as they are: zeusd does not answer at {cluster.far.place}"
        )

    def test_a_name_that_is_none(self, cluster: Cluster) -> None:
        spec = replace(cluster.spec, gpus=(*cluster.spec.gpus, "node2:4938/all"))
        with pytest.raises(ClockUnavailableError, match="HOST:PORT/INDEX"):
            spec.open()

    def test_no_gpu_of_this_machine(self, cluster: Cluster) -> None:
        spec = replace(cluster.spec, gpus=cluster.far.names(0, 1))
        with pytest.raises(ClockUnavailableError, match="on other nodes"):
            spec.open()


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
