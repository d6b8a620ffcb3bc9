"""The openai client and `vllm bench serve` get from a server with BEAM what they get without it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/test-vllm")
pytest.importorskip("openai")
pytestmark = pytest.mark.filterwarnings("default")

from driving import with_tokenizer  # noqa: E402

from beam_runtime.control.decision_log import read_log  # noqa: E402

SCRIPT = Path(__file__).parent / "live" / "openai_client.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_table: Any) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    with_tokenizer(tiny_llama, folder / "model")
    tiny_table(folder / "table.parquet", pp=1)
    (folder / "beam.toml").write_text('table = "table.parquet"\nlog = "decisions.jsonl"\n')
    return folder


def ask(folder: Path, policy: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "model"), policy],
        env={**os.environ, "BEAM_CONFIG": str(folder / "beam.toml")}, check=False,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    reports = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert reports, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(reports[0].removeprefix("REPORT "))
    return report


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = ask(folder, "off")["found"]
    return found


@pytest.mark.parametrize("policy", ["steer", "observe"])
def test_clients_get_what_they_get_without_beam(
    folder: Path, plain: dict[str, Any], policy: str
) -> None:
    report = ask(folder, policy)
    found = report["found"]
    assert len(found) >= 50
    assert {name: found[name] for name in plain} == plain
    answered = [one for one in plain.values() if isinstance(one, list) or "error" not in one]
    assert len(answered) >= 40, "most checks are of answers, not of refusals"
    assert f"BEAM {policy}s this engine" in report["log"]
    assert "BEAM stays out" not in report["log"]
    kinds = [record["kind"] for record in read_log(folder / "decisions.jsonl")]
    assert kinds.count("request") > 60
