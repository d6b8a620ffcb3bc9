"""Status, metrics and control: no vLLM is needed for them."""

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from beam_runtime.controller import Status
from beam_runtime.counts import Counts
from beam_runtime.engines.base import Orders
from beam_runtime.engines.config import EmbeddedPolicy
from beam_runtime.engines.vllm_control import Control, exposition, serve
from beam_runtime.engines.vllm_tally import Tally
from beam_runtime.errors import BeamError
from beam_runtime.types import Correction, Knobs, Rules, Slo

ROOT = Path(__file__).parents[2]


class FakeController:
    orders = Orders(Knobs(1200, 256), Rules(), True, "a test's")
    status = Status(True, "", "none", Counts(decisions=7), 0, 0, Correction())
    resumed = False

    def resume(self) -> None:
        self.resumed = True


@dataclass
class FakeEmbedded:
    """What Control uses of an Embedded."""

    controller: FakeController = field(default_factory=FakeController)
    policy: EmbeddedPolicy = EmbeddedPolicy.STEER
    slo: Slo = field(default_factory=Slo)
    tally: Tally = field(default_factory=Tally)
    failure: str = ""
    steering: bool = True
    sets_clocks: bool = False

    @property
    def view(self) -> Any:
        return type("View", (), {"followed": {"r1": None}})


def test_tally_counts_late_tokens_and_predicted_ones() -> None:
    tally = Tally()
    tally.first(900.0, 800.0, Slo(1000.0, 100.0))
    tally.first(1100.0, None, Slo(1000.0, 100.0))
    tally.first(10.0, float("inf"), Slo(1000.0, 100.0))
    tally.gap(90.0, Slo(1000.0, 100.0))
    tally.gap(110.0, Slo(1000.0, 100.0))
    assert (tally.ttfts, tally.ttft_ms, tally.predicted_ttft_ms) == (1, 900.0, 800.0)
    assert (tally.late_ttfts, tally.tbts, tally.tbt_ms, tally.late_tbts) == (1, 2, 200.0, 1)


def test_changes_take_effect_whole_or_not_at_all() -> None:
    embedded = FakeEmbedded()
    control = Control(embedded)  # type: ignore[arg-type]
    assert control.change({"slo": {"tbt_ms": 50}})["slo"] == {"ttft_ms": 1000.0, "tbt_ms": 50.0}
    assert control.change({"policy": "observe", "resume": True})["policy"] == "observe"
    assert embedded.controller.resumed
    for wish in ({}, [], {"polcy": "off"}, {"policy": "off"}, {"slo": 5}, {"slo": {"x": 1}}):
        with pytest.raises(BeamError):
            control.change(wish)
    with pytest.raises(BeamError, match="above 0"):
        control.change({"policy": "steer", "slo": {"ttft_ms": 0}})
    assert embedded.policy is EmbeddedPolicy.OBSERVE


def test_who_sets_clocks_does_not_pretend_to_observe() -> None:
    embedded = FakeEmbedded(sets_clocks=True)
    with pytest.raises(BeamError, match="cannot leave them alone"):
        Control(embedded).change({"policy": "observe"})  # type: ignore[arg-type]
    assert embedded.policy is EmbeddedPolicy.STEER


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


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    text = "".join(exposition(Control(FakeEmbedded()).status()))  # type: ignore[arg-type]
    offered = set(re.findall(r"^(beam_\w+) ", text, flags=re.MULTILINE))
    dashboard = (ROOT / "examples" / "grafana-beam.json").read_text()
    shown = {
        name
        for panel in json.loads(dashboard)["panels"]
        for target in panel["targets"]
        for name in re.findall(r"beam_\w+", target["expr"])
    }
    assert shown <= offered
    assert len(shown) > 20
