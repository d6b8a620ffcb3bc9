"""The dashboard and the alert rules ask for what a served engine really gives out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytestmark = pytest.mark.filterwarnings("default")

from driving import Clock, Director, drive  # noqa: E402

from beam_runtime.clocks.nvml import NvmlGpus  # noqa: E402
from beam_runtime.engines.vllm.control import Control  # noqa: E402
from beam_runtime.engines.vllm.power import PowerReading, Wattmeter  # noqa: E402
from beam_runtime.engines.vllm.scheduler import make_scheduler  # noqa: E402
from beam_runtime.testing.nvml import FakeNvml, fake_gpus  # noqa: E402
from beam_runtime.types import Knobs  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
SELECTOR = re.compile(r"(beam_\w+)(\{[^}]*\})?")
BY = re.compile(r"by \(([^)]*)\)")
# Prometheus adds these itself.
ADDED = {"instance", "job", "namespace", "pod"}
SAMPLE = re.compile(r"^(beam_\w+)(?:\{(.*)\})? (\S+)$")


def samples(text: str) -> dict[str, set[str]]:
    """Each metric's label names; every line of a scrape is a comment or a finite sample."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = SAMPLE.match(line)
        assert match, f"no sample: {line}"
        float(match[3])
        labels = set(re.findall(r'(\w+)="', match[2] or ""))
        found.setdefault(match[1], set()).update(labels)
    return found


@pytest.fixture
def scrape(
    rig: Any, simulated: Clock, config: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, set[str]]:
    """What an engine gives out after a workload."""
    engine = rig(make=make_scheduler)
    beam = engine.scheduler.beam
    real = beam.controller
    director = Director(lambda: Knobs(600, 256), predicted=3)
    drive(engine, simulated, director, 3, 1)
    beam.connect(real)  # closed by now: so it does not steer
    beam.wattmeter = Wattmeter(NvmlGpus([0], nvml=FakeNvml(fake_gpus(1))))
    monkeypatch.setattr(beam.wattmeter, "read", lambda: PowerReading(10.0, 300.0))
    return samples(Control(beam).metrics())


def asked() -> list[tuple[str, str]]:
    """(where, expression) of all panels and alert rules."""
    dashboard = json.loads((EXAMPLES / "grafana-beam.json").read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    rules = (EXAMPLES / "kubernetes" / "alerts.yaml").read_text()
    found += [("alert", text) for text in re.findall(r"expr: (.+)", rules)]
    return found


def test_every_expression_finds_its_metrics_and_labels(scrape: dict[str, set[str]]) -> None:
    expressions = asked()
    assert len(expressions) > 45
    for where, text in expressions:
        names = SELECTOR.findall(text)
        assert names, f"{where}: {text}"
        labels = set()
        for name, selector in names:
            assert name in scrape, f"{where} asks for {name}, which nobody gives out"
            labels = scrape[name] | ADDED
            wanted = set(re.findall(r"(\w+)=~?\"", selector))
            assert wanted <= labels, f"{where}: {name} has no {wanted - labels}"
            for by in BY.findall(text):
                wanted = {one.strip() for one in by.split(",")}
                assert wanted <= labels, f"{where}: {name} has no {wanted - labels}"
        assert text.count("(") == text.count(")"), text


def test_all_that_is_given_out_has_been_counted(scrape: dict[str, set[str]]) -> None:
    shown = {name for _, text in asked() for name, _ in SELECTOR.findall(text)}
    derived = re.compile(r"_(sum|count|bucket)$")
    left = {name for name in scrape if name not in shown and not derived.search(name)}
    assert left <= {"beam_slo_ttft_ms", "beam_slo_token_ms", "beam_decisions_total"}
