"""What commands read and write: streams are streams, links stay links, inputs stay as they are."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from beamprof.cli.main import main

TABLE = Path(__file__).parents[3] / "tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet"
REQUESTS = "arrival_s,input_tokens,output_tokens\n0,100,5\n1,200,5\n"
PROFILE = ("profile", "--model", "llama3-8b", "--backend", "modelled", "--budget", "2m")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    shutil.copy(TABLE, "t.parquet")
    Path("t.parquet").chmod(0o644)
    Path("x.csv").write_text(REQUESTS)
    return tmp_path


def run(capsysbinary, *words):
    code = main([str(word) for word in words])
    out, err = capsysbinary.readouterr()
    return code, out, err.decode()


def process(*words, **more):
    return subprocess.run(
        [sys.executable, "-P", "-m", "beamprof", *map(str, words)],
        capture_output=True, timeout=120, check=False, **more,
    )  # fmt: skip


# Each with its input, whatever it is called; OUT is where the output goes.
WRITERS = {
    "table export": ("t.parquet", "table export t.parquet -o OUT --force"),
    "table merge": ("t.parquet", "table merge t.parquet u.parquet -o OUT --force"),
    "table import": ("x.csv", "table import x.csv --format beam-artifact -o OUT --force"),
    "trace import": ("x.csv", "trace import x.csv -o OUT --force"),
    "study": ("x.csv", "study -t t.parquet --traces x.csv --policies vanilla -o OUT --force"),
    "study's table": (
        "t.parquet", "study -t t.parquet --traces x.csv --policies vanilla -o OUT --force",
    ),
    "report": ("log.jsonl", "report log.jsonl -o OUT --force"),
}  # fmt: skip


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("name", ["same", "dotted", "hard link", "symbolic link", "absolute"])
def test_an_output_is_never_one_of_the_inputs(capsysbinary, command, name):
    source, line = WRITERS[command]
    shutil.copy("t.parquet", "u.parquet")
    Path("log.jsonl").write_text("{}\n")
    before = Path(source).read_bytes()
    other = Path(f"other{Path(source).suffix}")
    if name == "hard link":
        os.link(source, other)
    elif name == "symbolic link":
        other.symlink_to(source)
    out = {"same": source, "dotted": f"./../{Path.cwd().name}/{source}",
           "absolute": str(Path(source).resolve())}.get(name, str(other))  # fmt: skip
    code, _, err = run(capsysbinary, *(out if word == "OUT" else word for word in line.split()))
    assert code == 2
    assert "is an input of this command" in err
    assert Path(source).read_bytes() == before
    assert other.is_symlink() == (name == "symbolic link")


@pytest.mark.parametrize("command", ["report", "table import"])
def test_nor_is_it_a_file_of_a_folder_that_is_read(capsysbinary, command):
    run(capsysbinary, "replay", "-t", "t.parquet", "--trace", "x.csv", "--policy", "vanilla",
        "-o", "run")  # fmt: skip
    before = Path("run/requests.parquet").read_bytes()
    words = {"report": ("report", "run"),
             "table import": ("table", "import", "run", "--format", "aiconfigurator")}  # fmt: skip
    code, _, err = run(capsysbinary, *words[command], "-o", "run/requests.parquet", "--force")
    assert code == 2
    assert "is an input of this command" in err
    assert Path("run/requests.parquet").read_bytes() == before


def test_the_page_of_a_folder_may_be_written_again(capsysbinary):
    run(capsysbinary, "replay", "-t", "t.parquet", "--trace", "x.csv", "--policy", "vanilla",
        "-o", "run")  # fmt: skip
    for flags in ((), ("--force",), ("-o", "run/report.html", "--force")):
        code, _, err = run(capsysbinary, "report", "run", *flags)
        assert code == 0, err


STREAMS = {
    "table export": ("table", "export", "t.parquet"),
    "trace import": ("trace", "import", "x.csv"),
    "trace generate": ("trace", "generate", "poisson", "--duration", "1m"),
    "sweep init": ("sweep", "init"),
    "profile": PROFILE,
}


def to(command, out):
    words = STREAMS[command]
    return (*words, out) if command == "sweep init" else (*words, "-o", out)


@pytest.mark.parametrize("command", STREAMS)
def test_every_output_may_be_standard_output_and_words_go_elsewhere(capsysbinary, command):
    code, out, err = run(capsysbinary, *to(command, "-"))
    assert code == 0, err
    assert out
    assert b"wrote" not in out
    assert b"next:" not in out
    # What went through a pipe cannot be named again.
    assert "wrote -" not in err
    assert "next:" not in err
    assert not Path("-").exists()
    code, out, err = run(capsysbinary, *to(command, "-"), "--json")
    assert code == 2
    assert "--json and -o - both" in err


@pytest.mark.parametrize("command", STREAMS)
def test_devices_and_pipes_are_written_into(capsysbinary, command):
    code, _, err = run(capsysbinary, *to(command, "/dev/null"))
    assert code == 0, err
    assert Path("/dev/null").is_char_device()
    os.mkfifo("pipe")
    came = []
    reader = threading.Thread(target=lambda: came.append(Path("pipe").read_bytes()), daemon=True)
    reader.start()
    code, _, err = run(capsysbinary, *to(command, "pipe"))
    reader.join(20)
    assert code == 0, err
    assert came[0]
    assert Path("pipe").is_fifo()


def test_a_full_device_is_an_ordinary_error(capsysbinary):
    for command in STREAMS:
        code, _, err = run(capsysbinary, *to(command, "/dev/full"))
        assert code == 2
        assert "No space left on device" in err


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_one_and_its_file_is_written(capsysbinary, there):
    Path("sub").mkdir()
    target = Path("sub/real.csv")
    Path("link.csv").symlink_to(target)
    if there:
        target.write_text("old")
        assert run(capsysbinary, "table", "export", "t.parquet", "-o", "link.csv")[0] == 2
        assert target.read_text() == "old"
    words = ("table", "export", "t.parquet", "-o", "link.csv", *(["--force"] if there else []))
    assert run(capsysbinary, *words)[0] == 0
    assert Path("link.csv").is_symlink()
    assert target.read_text().startswith("kind,")


def test_force_keeps_a_files_mode(capsysbinary):
    Path("out.csv").write_text("old")
    Path("out.csv").chmod(0o640)
    assert run(capsysbinary, "table", "export", "t.parquet", "-o", "out.csv", "--force")[0] == 0
    assert Path("out.csv").stat().st_mode & 0o777 == 0o640


READERS = {
    "table inspect -": "t.parquet",
    "table check -": "t.parquet",
    "table lookup - --prefill 64": "t.parquet",
    "table compare - t.parquet": "t.parquet",
    "table export - -o -": "t.parquet",
    "trace stats -": "x.csv",
    "trace import - -o -": "x.csv",
    "sweep show -": "mine.toml",
    "profile --model llama3-8b --backend modelled --dry-run --sweep -": "mine.toml",
    "decide t.parquet --state -": "state.json",
}


@pytest.mark.parametrize("line", READERS)
def test_standard_input_is_read_wherever_a_file_is(monkeypatch, capsysbinary, line):
    Path("mine.toml").write_text("tp = 2\n")
    Path("state.json").write_text('{"waiting": [{"prompt_tokens": 900}]}')
    content = Path(READERS[line]).read_bytes()
    for name in ("mine.toml", "state.json"):
        Path(name).unlink()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, out, err = run(capsysbinary, *line.split())
    assert code == 0, err
    assert out
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["t.parquet", "x.csv"]


def test_a_study_cannot_read_its_traces_from_a_pipe(capsysbinary):
    code, _, err = run(capsysbinary, "study", "-t", "t.parquet", "--traces", "-")
    assert code == 2
    assert "standard input cannot be" in err


def test_an_import_keeps_the_dots_of_a_name(capsysbinary):
    shutil.copy("x.csv", "load.1.5rps.csv")
    Path("load.2.5rps.csv.gz").write_bytes(gzip.compress(REQUESTS.encode()))
    for name in ("load.1.5rps.csv", "load.2.5rps.csv.gz"):
        assert run(capsysbinary, "trace", "import", name)[0] == 0
    assert Path("load.1.5rps.trace.parquet").exists()
    assert Path("load.2.5rps.trace.parquet").exists()


def test_an_error_in_standard_input_calls_it_so(monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello there")))
    code, _, err = run(capsysbinary, "table", "inspect", "-")
    assert code == 2
    assert "standard input is no table: it is text" in err


def test_a_table_goes_down_a_pipe_from_command_to_command():
    made = process(*PROFILE, "-o", "-")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(b"PAR1")
    shown = process("table", "inspect", "-", "--json", input=made.stdout)
    assert json.loads(shown.stdout)["status"] == "ok"


def test_a_reader_that_goes_away_ends_the_command_without_a_word():
    words = [sys.executable, "-P", "-m", "beamprof", "table", "export", "t.parquet", "-o", "-"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        command.stdout.readline()
        command.stdout.close()
        said = command.stderr.read()
        code = command.wait(60)
    # All of 30 kB may have gone into the pipe before its reader went.
    assert code in (0, 128 + signal.SIGPIPE)
    assert b"Traceback" not in said
    assert b"Exception ignored" not in said


def test_a_closed_pipe_is_exit_141():
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = subprocess.run(
        [sys.executable, "-P", "-m", "beamprof", "table", "inspect", "t.parquet"],
        stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_full_standard_output_is_an_ordinary_error(json_too):
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            [sys.executable, "-P", "-m", "beamprof", "table", "inspect", "t.parquet", *json_too],
            stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert run.returncode == 2
    assert b"No space left" in run.stderr
    assert b"Exception ignored" not in run.stderr


def test_a_dry_run_estimates_where_the_output_exists(capsysbinary):
    code, out, _ = run(capsysbinary, *PROFILE, "--dry-run", "-o", "t.parquet")
    assert code == 0
    assert b"would replace   t.parquet" in out
    assert b"--force" in out
    code, out, _ = run(capsysbinary, *PROFILE, "--dry-run", "-o", "t.parquet", "--json")
    assert json.loads(out)["data"]["output_exists"] is True
    Path("study.parquet").write_text("there")
    words = ("study", "-t", "t.parquet", "--traces", "x.csv", "--policies", "vanilla", "--dry-run")
    assert run(capsysbinary, *words)[0] == 0
    assert Path("study.parquet").read_text() == "there"


def test_a_flag_that_is_cut_says_so_in_words_and_in_json(capsysbinary):
    bare = ("profile", "--model", "llama3-8b", "--backend", "modelled", "--dry-run")
    words = (*bare, "--max-tokens", "1000000")
    _, _, err = run(capsysbinary, *words)
    assert "8191 tokens, not 1000000 (--max-tokens)" in err
    _, out, _ = run(capsysbinary, *words, "--json")
    assert "1000000" in json.loads(out)["warnings"][0]
    _, _, err = run(capsysbinary, *bare)
    assert "largest step" not in err  # nobody asked for another


def test_a_chunk_beyond_the_table_is_cut_and_says_so(capsysbinary):
    words = ("decide", "t.parquet", "--waiting", "1500", "--max-chunk", "100000")
    code, _, err = run(capsysbinary, *words)
    assert code == 0
    assert "--max-chunk 100000 was cut to 1024" in " ".join(err.split())
    _, out, _ = run(capsysbinary, *words, "--json")
    assert "100000" in json.loads(out)["warnings"][0]


def test_json_names_its_command_on_every_path(capsysbinary):
    for words, command in (
        (("table", "inspect", "t.parquet"), "table inspect"),
        (("table", "inspect", "nix"), "table inspect"),
        (("table", "inspect", "--nix"), "table inspect"),
        (("trace", "generate", "poisson", "--rate", "x"), "trace generate poisson"),
        (("table",), "table"),
        (("nix",), None),
    ):
        _, out, _ = run(capsysbinary, *words, "--json")
        answer = json.loads(out)
        assert answer["command"] == command
        assert answer["status"] in ("ok", "error")
        # The table that ships is modelled; nothing else here has a warning.
        modelled = answer["status"] == "ok"
        assert [one[:17] for one in answer["warnings"]] == ["modelled numbers,"] * modelled


def test_an_interrupt_says_what_was_kept(monkeypatch, capsysbinary):
    from beamprof.traces import importing

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "import_trace", interrupted)
    code, out, err = run(capsysbinary, "trace", "import", "x.csv", "--json")
    assert code == 130
    assert err == "interrupted: nothing was written; run the same command again\n"
    assert json.loads(out)["status"] == "interrupted"


def test_a_bug_is_json_too(monkeypatch, capsysbinary):
    from beamprof.traces import importing

    def broken(*_, **__):
        raise ZeroDivisionError("ouch")

    monkeypatch.setattr(importing, "import_trace", broken)
    code, out, err = run(capsysbinary, "trace", "import", "x.csv", "--json")
    answer = json.loads(out)
    assert (code, answer["status"], answer["command"]) == (70, "bug", "trace import")
    assert "ouch" in err


NAMED = {
    "profile --model llama3-8b --backend modelled -o p.csv": "p.parquet",
    "table merge t.parquet u.parquet -o m.csv": "m.parquet",
    "table export t.parquet -o e.parquet": "e.csv",
    "table export t.parquet --format jsonl -o e.csv": "e.jsonl",
    "table import x.csv --format beam-artifact -o i.csv": "i.parquet",
    "study -t t.parquet --traces x.csv --policies vanilla -o s.csv": "s.parquet",
    "report log.jsonl -o r.pdf": "r.html",
    "report log.jsonl -o r.jpg": "r.html",
    "advise -t t.parquet --rate 1 -o a.png": "a.html",
    "sweep init s.json": "s.toml",
    "trace import x.csv -o t.json": "t.parquet",
}


@pytest.mark.parametrize("line", NAMED)
def test_a_name_that_says_another_kind_of_file_is_refused(capsysbinary, line):
    shutil.copy("t.parquet", "u.parquet")
    Path("log.jsonl").write_text("{}\n")
    before = sorted(path.name for path in Path().iterdir())
    code, _, err = run(capsysbinary, *line.split())
    assert code == 2
    assert f" {NAMED[line]}" in err.partition("hint:")[2]
    assert sorted(path.name for path in Path().iterdir()) == before


@pytest.mark.parametrize("name", ["e", "e.txt", "e.CSV", "no.such.kind"])
def test_a_name_that_says_nothing_or_the_right_thing_is_taken(capsysbinary, name):
    assert run(capsysbinary, "table", "export", "t.parquet", "-o", name)[0] == 0
    assert Path(name).exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_streams_that_the_caller_closed_lead_nowhere(tmp_path, closed):
    beam = f'"{sys.executable}" -P -m beamprof'
    for words, code in (("table inspect t.parquet", 0), ("table inspect nix", 2)):
        done = subprocess.run(
            ["sh", "-c", f"{beam} {words} {closed}"], capture_output=True, timeout=120, check=False
        )
        assert done.returncode == code, done.stderr
        assert b"bug" not in done.stdout + done.stderr


def test_an_example_of_a_study_is_one_object_where_json_is_asked_for(capsysbinary):
    code, plain, _ = run(capsysbinary, "study", "--example")
    code_json, out, _ = run(capsysbinary, "study", "--example", "--json")
    assert (code, code_json) == (0, 0)
    answer = json.loads(out)
    assert (answer["command"], answer["status"]) == ("study --example", "ok")
    assert answer["data"]["toml"] == plain.decode()
