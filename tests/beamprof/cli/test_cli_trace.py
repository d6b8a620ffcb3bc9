"""`beam trace`: what a person and a script see."""

import json

import pytest

from beamprof.cli.main import main
from beamprof.traces.trace_file import load_trace

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9,4808,10\n2023-11-16 18:17:04.9,3180,8\n2023-11-16 18:17:13.9,99,7\n"
)


@pytest.fixture
def azure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    return path


def run(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def as_json(capsys, *words):
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_import_says_it_in_a_sentence_draws_it_and_names_the_next_command(azure, capsys):
    code, out, err = run(capsys, "trace", "import", azure)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("3 requests in 10 s: 0.3 requests/s, 811 tokens/s")
    assert "▁" in out or "█" in out
    assert "azure.trace.parquet.json" in out
    assert lines[-1].startswith("next: beam replay")
    folder = str(azure.parent)  # as long as whoever runs the tests has made it
    assert all(len(line.rstrip()) <= 100 for line in lines if folder not in line)
    assert load_trace(azure.with_name("azure.trace.parquet")).requests == 3


def test_import_as_json_carries_trace_statistics_and_paths(azure, capsys):
    answer = as_json(
        capsys, "trace", "import", azure, "-o", "small.csv",
        "--window", "0s:5s", "--max-total-tokens", "4000", "--over-limit", "drop",
    )  # fmt: skip
    assert answer["command"] == "trace import"
    data = answer["data"]
    assert data["paths"] == ["small.csv", "small.csv.json"]
    assert data["statistics"]["requests"] == 1
    steps = {step["name"]: step["counts"] for step in data["trace"]["transforms"]}
    assert steps == {
        "import": {},
        "window": {"outside_window": 1},
        "max_total_tokens": {"over_max_total_tokens": 1},
    }


@pytest.mark.parametrize(
    ("window", "duration_s"), [("1s:", 9.0), (":9s", 9.0), ("500ms:1500ms", 1.0), ("0:2s", 2.0)]
)
def test_a_window_may_be_open_at_either_end(azure, capsys, window, duration_s):
    data = as_json(capsys, "trace", "import", azure, "--window", window)["data"]
    assert data["trace"]["duration_s"] == duration_s


def test_stats_reads_ours_and_foreign_files_alike(azure, capsys):
    run(capsys, "trace", "import", azure, "-o", "t.parquet")
    ours = as_json(capsys, "trace", "stats", "t.parquet")["data"]
    foreign = as_json(capsys, "trace", "stats", azure)["data"]
    assert ours["statistics"] == foreign["statistics"]
    assert ours["paths"] == []


@pytest.mark.parametrize(
    ("kind", "requests"),
    [
        (["poisson", "--rate", "5", "--duration", "1m"], 300),
        (["step", "--low", "4", "--high", "20"], 960),
        (["ramp", "--from", "2", "--to", "6.4", "--duration", "5m"], 1260),
        (["spike", "--requests", "4", "--every", "10s", "--duration", "1m"], 140),
    ],
)
def test_each_synthetic_kind_is_generated_from_its_seed(azure, capsys, kind, requests):
    del azure  # for the directory
    first = as_json(capsys, "trace", "generate", *kind, "--seed", "3", "-o", "a.parquet")["data"]
    again = as_json(capsys, "trace", "generate", *kind, "--seed", "3", "-o", "b.csv")["data"]
    other = as_json(capsys, "trace", "generate", *kind, "--seed", "4", "-o", "c.csv")["data"]
    digests = [data["trace"]["rows_sha256"] for data in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    assert abs(first["statistics"]["requests"] - requests) < 5 * requests**0.5


def test_servegen_pools_are_drawn_to_a_load(azure, tmp_path, capsys):
    del azure
    pool = tmp_path / "m-tiny"
    pool.mkdir()
    rows = "".join(f"{start},1.0,1,Gamma,0.9,1.0\n" for start in range(68400, 72000, 600))
    (pool / "chunk-4-trace.csv").write_text(rows)
    law = {"input_tokens": "{500: 0.5, 900: 0.5}", "output_tokens": "{30: 1.0}"}
    (pool / "chunk-4-dataset.json").write_text(json.dumps({"64800": law}))
    words = ["trace", "generate", "servegen", pool, "--target-tps", "400"]
    data = as_json(capsys, *words)["data"]
    assert data["paths"][0] == "servegen-m-tiny-d0-19h-seed0.parquet"
    assert data["statistics"]["tokens_per_s"] == pytest.approx(400, rel=0.02)
    code, _, err = run(capsys, *words, "--scale", "2")
    assert code == 2
    assert "--scale and --target-tps" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "nix.csv"], "there is no file"),
        (["import", "azure.csv", "--format", "mooncake"], "not of format mooncake"),
        (["import", "azure.csv", "--window", "5s"], "expected FROM:TO"),
        (["import", "azure.csv", "--window", "5:9"], "5 has no unit"),
        (["import", "azure.csv", "--target-tps", "9999"], "thinning can only lower"),
        (["import", "azure.csv", "--max-total-tokens", "100"], "--over-limit drop or truncate"),
        (["import", "azure.csv", "-o", "x.txt"], ".parquet or .csv"),
        (["import", "azure.csv", "-o", "no/where.csv"], "mkdir -p no"),
        (["stats", "azure.parquet"], "there is no file"),
        (["generate", "poisson", "--duration", "10"], "10 has no unit"),
        (["generate", "servegen", "."], "no ServeGen pool"),
        (["generate", "step", "--burst", "1h"], "burst must lie inside"),
    ],
)
def test_bad_input_ends_with_2_and_words(azure, capsys, words, message):
    before = set(azure.parent.iterdir())
    code, out, err = run(capsys, "trace", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert set(azure.parent.iterdir()) == before


def test_an_existing_trace_is_replaced_only_by_force(azure, capsys):
    assert run(capsys, "trace", "import", azure)[0] == 0
    code, _, err = run(capsys, "trace", "import", azure)
    assert code == 2
    assert "--force" in err
    assert run(capsys, "trace", "import", azure, "--force")[0] == 0
