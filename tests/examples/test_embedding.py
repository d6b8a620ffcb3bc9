"""What docs/embedding.md and the example promise can be run as it stands."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import beam_runtime
from beam_runtime.control.controller import Controller
from beam_runtime.table.perf_table import PerfTable
from beamprof.tables.table_file import write_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(small_table: PerfTable, tmp_path: Path) -> Path:
    path = tmp_path / "70b.parquet"
    write_table(small_table.columns, small_table.metadata, path)
    return path


@pytest.fixture
def example() -> ModuleType:
    path = ROOT / "examples" / "embed_toy_engine.py"
    spec = importlib.util.spec_from_file_location("embed_toy_engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_five_lines_run(table: Path) -> None:
    page = (ROOT / "docs" / "embedding.md").read_text()
    first = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert first is not None
    # Not on this machine's GPUs.
    code = first.group(1).replace("gpus=range(8)", "gpus=()").replace("70b.parquet", str(table))
    scope: dict[str, object] = {}
    exec(code, scope)
    beam = scope["beam"]
    assert isinstance(beam, Controller)
    assert scope["chunk_tokens"] == beam.orders.knobs.chunk_tokens
    assert beam.status.dropped_events == beam.status.odd_events == 0


def test_every_hook_of_the_page_exists() -> None:
    page = (ROOT / "docs" / "embedding.md").read_text()
    hooks = set(re.findall(r"`(\w+)\([^`]*\)`(?=,| \|)", page))
    assert {"arrival", "step_issued", "step_finished", "completion", "preemption"} <= hooks
    assert all(hasattr(Controller, hook) for hook in hooks)


def test_every_public_name_resolves() -> None:
    for name in beam_runtime.__all__:
        assert getattr(beam_runtime, name) is not None
    with pytest.raises(AttributeError):
        _ = beam_runtime.no_such_name  # type: ignore[attr-defined]


def test_the_toy_engine_says_why_a_promise_is_broken(example: ModuleType) -> None:
    ledger = example.Ledger
    assert example.missed(ledger(), ledger()) == ""
    assert "not every promise" in example.missed(ledger(late_tbt=9), ledger(late_ttft=2))
    assert "fewer promises" in example.missed(ledger(), ledger(late_ttft=2))


def test_the_toy_engine_saves_energy_and_serves_the_same_tokens(
    example: ModuleType, table: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["embed_toy_engine.py", str(table), "--rate", "2", "--seconds", "5"]
    monkeypatch.setattr("sys.argv", words)
    example.main()
    printed = capsys.readouterr().out
    share = re.search(r"energy: ([0-9.]+) of vanilla's; tokens: the same", printed)
    assert share is not None, printed
    assert float(share.group(1)) < 1.0
