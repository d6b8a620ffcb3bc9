"""Clocks of a replica over three machines: set on all, and free on the others where one fails."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from fault_zeusd import Zeusd
from lock_bench import wait_for
from node_cluster import FREE, Cluster, cluster

from beam_runtime.clocks.choose import Choice
from beam_runtime.clocks.file_gpus import MODEL
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nodes import AcrossNodes
from beam_runtime.clocks.places import by_place, node_of
from beam_runtime.clocks.zeusd_node import ZeusdNode
from beam_runtime.control import resources
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.testing.actuator import FakeActuator

__all__ = ["cluster"]  # a fixture


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
