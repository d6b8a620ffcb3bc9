"""A replica over two nodes: the other one's zeusd fails while the engine serves."""

from collections.abc import Iterator

import pytest
from fault_bench import Bench, requests
from fault_zeusd import Zeusd, serving

from beam_runtime.clocks import zeusd_client
from beam_runtime.clocks.nodes import AcrossNodes
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.zeusd_node import ZeusdNode
from beam_runtime.control.controller import Controller
from beam_runtime.testing.nvml import FakeNvml, fake_gpus


@pytest.fixture
def zeusd(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zeusd]:
    """Two GPUs of the bench's four."""
    monkeypatch.setattr(zeusd_client, "TIMEOUT_S", 0.3)
    monkeypatch.delenv("ZEUSD_TOKEN", raising=False)
    here, there = FakeNvml(fake_gpus(2)), Zeusd(FakeNvml(fake_gpus(2)))
    with serving(there):
        own = NvmlGpus([0, 1], nvml=here)
        bench.actuator = AcrossNodes(own, [ZeusdNode(there.names(0, 1))])
        bench.locked = lambda: (*here.locked, *there.nvml.locked)
        yield there


def test_all_goes_well(bench: Bench, zeusd: Zeusd) -> None:
    seen: set[tuple[int | None, ...]] = set()
    bench.run(requests(), meanwhile=lambda controller, now_ms: seen.add(tuple(bench.locked_mhz)))
    assert bench.after.steering
    assert len(seen) > 2
    assert all(len(set(clocks)) == 1 for clocks in seen), "all nodes run at one clock"


def test_a_daemon_that_is_gone_for_a_while(bench: Bench, zeusd: Zeusd) -> None:
    alone = []

    def away(controller: Controller, now_ms: float) -> None:
        if controller.status.counts.falls:
            alone.append(bench.locked_mhz)
            if not zeusd.listens:
                zeusd.start()
        elif now_ms > 500.0:
            zeusd.stop()

    bench.run(requests(60), meanwhile=away)
    assert bench.after.counts.falls == 1
    assert alone[0][:2] == [None, None], "who answers is not kept locked"
    assert None not in alone[0][2:], "who does not is"
    assert [None] * 4 in alone, "until it does"
    assert bench.after.steering


def test_a_token_that_expires_is_asked_with_until_it_is_renewed(
    bench: Bench, zeusd: Zeusd, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_last: list[int | None] = [0]

    def expire(controller: Controller, now_ms: float) -> None:
        if now_ms > 500.0 and zeusd.nvml.locked[0]:
            zeusd.token = "renewed"
        if now_ms > 3000.0:
            monkeypatch.setenv("ZEUSD_TOKEN", "renewed")
        at_last[:] = bench.locked_mhz

    bench.run(requests(60), meanwhile=expire)
    assert bench.after.counts.clock_failures > 1
    assert at_last == [None] * 4, "free before the controller closes"
