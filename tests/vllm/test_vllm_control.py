"""Status, metrics and control: no vLLM is needed for them."""

import http.client
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.control.counts import Counts
from beam_runtime.control.orders import Orders
from beam_runtime.control.status import Status
from beam_runtime.engines.config import EmbeddedPolicy
from beam_runtime.engines.vllm.control import Control, exposition, serve
from beam_runtime.engines.vllm.embedded import Embedded
from beam_runtime.engines.vllm.power import PowerReading, Wattmeter, open_wattmeter
from beam_runtime.engines.vllm.tally import Tally
from beam_runtime.errors import BeamError
from beam_runtime.testing.nvml import FakeNvml, fake_gpus
from beam_runtime.types import Correction, Knobs, Rules, Slo

ROOT = Path(__file__).parents[2]


class FakeController:
    orders = Orders(Knobs(1200, 256), Rules(), True, "a test's")
    status = Status(True, "", "none", Counts(decisions=7, search_ms=2.5), 0, 0, Correction())
    resumed = False
    asked = ""

    def resume(self) -> None:
        self.resumed = True

    def observe(self) -> None:
        self.asked = "observe"

    def steer(self) -> None:
        self.asked = "steer"

    def promise(self, slo: Slo) -> None:
        self.asked = f"{slo.ttft_ms:.0f} and {slo.tbt_ms:.0f} ms"


@dataclass
class FakeEmbedded:
    """What Control uses of an Embedded."""

    controller: FakeController = field(default_factory=FakeController)
    policy: EmbeddedPolicy = EmbeddedPolicy.STEER
    slo: Slo = field(default_factory=Slo)
    tally: Tally = field(default_factory=Tally)
    failure: str = ""
    steering: bool = True
    wattmeter: Wattmeter | None = None

    def obey(self, policy: EmbeddedPolicy) -> None:
        Embedded.obey(self, policy)  # type: ignore[arg-type]

    def promise(self, slo: Slo) -> None:
        Embedded.promise(self, slo)  # type: ignore[arg-type]

    @property
    def view(self) -> Any:
        return type("View", (), {"followed": {"r1": None}})


def test_tally_counts_late_tokens_and_predicted_ones() -> None:
    tally = Tally()
    tally.first(900.0, 800.0, Slo(1000.0, 100.0))
    tally.first(1100.0, None, Slo(1000.0, 100.0))
    tally.first(10.0, float("inf"), Slo(1000.0, 100.0))
    tally.gap(90.0, None, Slo(1000.0, 100.0))
    tally.gap(110.0, 95.0, Slo(1000.0, 100.0))
    assert (tally.ttfts, tally.ttft_ms, tally.predicted_ttft_ms) == (1, 900.0, 800.0)
    assert (tally.late_ttfts, tally.tbts, tally.tbt_ms, tally.late_tbts) == (1, 2, 200.0, 1)
    compared = (tally.predicted_tbts, tally.predicted_actual_tbt_ms, tally.predicted_tbt_ms)
    assert compared == (1, 110.0, 95.0)


def test_changes_take_effect_whole_or_not_at_all() -> None:
    embedded = FakeEmbedded()
    control = Control(embedded)  # type: ignore[arg-type]
    assert control.change({"slo": {"tbt_ms": 50}})["slo"] == {"ttft_ms": 1000.0, "tbt_ms": 50.0}
    assert embedded.controller.asked == "1000 and 50 ms"
    assert control.change({"policy": "observe", "resume": True})["policy"] == "observe"
    assert embedded.controller.resumed
    for wish in ({}, [], {"polcy": "off"}, {"policy": "off"}, {"slo": 5}, {"slo": {"x": 1}}):
        with pytest.raises(BeamError):
            control.change(wish)
    with pytest.raises(BeamError, match="above 0"):
        control.change({"policy": "steer", "slo": {"ttft_ms": 0}})
    assert embedded.policy is EmbeddedPolicy.OBSERVE


def test_the_controller_hears_of_a_new_policy() -> None:
    embedded = FakeEmbedded()
    control = Control(embedded)  # type: ignore[arg-type]
    assert control.change({"policy": "observe"})["policy"] == "observe"
    assert embedded.controller.asked == "observe"
    assert control.change({"policy": "steer"})["policy"] == "steer"
    assert embedded.controller.asked == "steer"


def test_measured_power_is_the_counters_own() -> None:
    nvml, now_s = FakeNvml(fake_gpus(2)), [100.0]
    meter = Wattmeter(NvmlGpus([0, 1], nvml=nvml), now_s=lambda: now_s[0])
    assert meter.read() == PowerReading(0.0, None)
    now_s[0] += 2.0
    nvml.gpus[0].energy_mj += 300_000
    nvml.gpus[1].energy_mj += 500_000
    assert meter.read() == PowerReading(800.0, 400.0)
    now_s[0] += 0.2  # too soon for a mean
    nvml.gpus[0].energy_mj += 100_000
    assert meter.read() == PowerReading(900.0, 400.0)
    now_s[0] += 0.8
    nvml.gpus[1].energy_mj = 0  # the driver was loaded anew
    assert meter.read() == PowerReading(900.0, 100.0)
    text = metrics_of(FakeEmbedded(wattmeter=meter))
    assert "\nbeam_gpu_energy_j_total 900\n" in text
    nvml.fail("nvmlDeviceGetTotalEnergyConsumption", 15)  # the GPU fell off the bus
    assert "beam_gpu" not in metrics_of(FakeEmbedded(wattmeter=meter))


def test_without_named_gpus_there_is_no_power() -> None:
    assert open_wattmeter(()) is None
    assert "beam_gpu" not in metrics_of(FakeEmbedded())


def metrics_of(embedded: FakeEmbedded) -> str:
    return "".join(exposition(Control(embedded).status()))  # type: ignore[arg-type]


def test_over_http() -> None:
    server = serve(Control(FakeEmbedded()), 0)  # type: ignore[arg-type]
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(f"{address}/status", timeout=5) as answer:
            assert json.load(answer)["knobs"]["clock_mhz"] == 1200
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:
            assert b"\nbeam_decisions_total 7\n" in answer.read()
        wish = json.dumps({"slo": {"ttft_ms": 300}}).encode()
        with urllib.request.urlopen(f"{address}/control", wish, timeout=5) as answer:
            assert json.load(answer)["slo"]["ttft_ms"] == 300.0
        for body in (b"{", b'{"policy": "off"}', b"[1]"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}/control", body, timeout=5)
            assert refused.value.code == 400
            refused.value.close()
        with pytest.raises(BeamError, match="cannot be served"):
            serve(Control(FakeEmbedded()), server.server_address[1])  # type: ignore[arg-type]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Host": "elsewhere.example"}, 403),
        ({"Origin": "http://elsewhere.example", "Host": "elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9464"}, 200),
        ({"Host": "[::1]:9464"}, 200),
    ],
)
def test_pages_of_other_origins_change_nothing(headers: dict[str, str], code: int) -> None:
    beam = FakeEmbedded()
    server = serve(Control(beam), 0)  # type: ignore[arg-type]
    try:
        wire = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
        wire.request("POST", "/control", b'{"slo": {"ttft_ms": 777}}', headers)
        assert wire.getresponse().status == code
    finally:
        server.shutdown()
        server.server_close()
    assert (beam.slo.ttft_ms == 777.0) == (code == 200)


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e999", "1" + "0" * 400, "true", "[1]"])
def test_numbers_that_are_no_promise(value: str) -> None:
    beam = FakeEmbedded()
    before = beam.slo
    with pytest.raises(BeamError, match=r"slo\.ttft_ms must be milliseconds"):
        Control(beam).change({"slo": {"ttft_ms": json.loads(value)}})  # type: ignore[arg-type]
    assert beam.slo == before


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    meter = Wattmeter(NvmlGpus([0], nvml=FakeNvml(fake_gpus(1))))
    text = metrics_of(FakeEmbedded(wattmeter=meter))
    offered = set(re.findall(r"^(beam_\w+) ", text, flags=re.MULTILINE))
    dashboard = (ROOT / "examples" / "grafana-beam.json").read_text()
    shown = {
        name
        for panel in json.loads(dashboard)["panels"]
        for target in panel["targets"]
        for name in re.findall(r"beam_\w+", target["expr"])
    }
    # Power has its gauge only once a second has passed.
    assert shown <= offered | {"beam_gpu_power_w"}
    assert {"beam_decision_ms_sum", "beam_tbt_predicted_ms_sum", "beam_gpu_power_w"} <= shown
    assert len(shown) > 20
