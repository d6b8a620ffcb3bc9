"""The openai client, `vllm bench serve` and plain HTTP get from a server with BEAM what they get
without it. Two servers serve all of these tests: each takes a minute or more to start.
"""

import json
import os
import socket
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
    return folder


def ask(folder: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "model"), *words],
        env={**os.environ, "BEAM_CONFIG": str(folder / "beam.toml")}, check=False,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    reports = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert reports, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(reports[0].removeprefix("REPORT "))
    return report


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = ask(folder, "off")["found"]["off"]
    return found


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    """One server that observes, as every server begins, and is then told to steer."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    (folder / "beam.toml").write_text(
        f'table = "table.parquet"\nlog = "decisions.jsonl"\nmetrics_port = {port}\n'
        "[slo.batch]\nttft_ms = 60000\n"
    )
    return ask(folder, "observe,steer", str(port))


@pytest.mark.parametrize("policy", ["observe", "steer"])
def test_clients_get_what_they_get_without_beam(
    plain: dict[str, Any], told: dict[str, Any], policy: str
) -> None:
    found = told["found"][policy]
    assert len(found) >= 50
    assert {name: found[name] for name in plain} == plain
    answered = [one for one in plain.values() if isinstance(one, list | str) or "error" not in one]
    assert len(answered) >= 40, "most checks are of answers, not of refusals"
    assert told["status"][policy]["policy"] == policy
    assert "BEAM observes this engine" in told["log"]
    assert "BEAM stays out" not in told["log"]


def test_every_request_of_both_is_told_of(folder: Path, told: dict[str, Any]) -> None:
    records = list(read_log(folder / "decisions.jsonl"))
    done = [record for record in records if record["kind"] == "request"]
    assert len(done) > 120
    assert all(record["active_energy_j"] > 0 for record in done if record["generated_tokens"])


def test_a_server_is_spoken_to_over_plain_http(folder: Path, told: dict[str, Any]) -> None:
    plainly = told["plainly"]
    assert all(plainly["chunks"]), "how many is a matter of load: a busy server joins tokens"
    before, after = plainly["before"]["tally"], plainly["status"]["tally"]
    counted = after["classes"]["batch"]
    assert counted["completions"] == 4
    assert after["aborts"] - before["aborts"] == 1
    assert counted["late_first_tokens"] == 0
    assert plainly["changed"]["slo"]["ttft_ms"] == 700.0
    assert "above 0" in plainly["refused"]
    assert '\nbeam_completions_total{slo_class="batch"} 4\n' in plainly["metrics"]
    assert "Traceback" not in told["log"]
    # vLLM kills its engine process right after SIGTERM, but the log has its last words.
    assert "stop" in [record["kind"] for record in read_log(folder / "decisions.jsonl")]
