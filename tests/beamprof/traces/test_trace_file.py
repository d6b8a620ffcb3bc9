"""A trace's invariants, and its way to disk and back."""

import dataclasses
import json
import re
import resource

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beamprof.errors import ImportFormatError, OutputError, TraceError
from beamprof.traces.importing import import_trace
from beamprof.traces.trace import Provenance, Trace, arrange
from beamprof.traces.trace_file import load_trace, save_trace, sidecar_path

PROVENANCE = Provenance("made here", "test", None, "none")


def made(arrival_s=(0.0, 0.5, 2.0), input_tokens=(5, 6, 7), output_tokens=(1, 2, 3), **more):
    duration_s = more.pop("duration_s", 10.0)
    block = more.pop("prefix_block_tokens", None)
    frame = pl.DataFrame(
        {
            "request_id": list(range(len(arrival_s))),
            "arrival_s": list(arrival_s),
            "input_tokens": list(input_tokens),
            "output_tokens": list(output_tokens),
            **more,
        }
    )
    return Trace(arrange(frame), duration_s, PROVENANCE, block)


words = st.one_of(st.none(), st.text("abc ,\"'-é0", min_size=1))
rows = st.lists(
    st.tuples(
        st.floats(0, 1e6),
        st.integers(1, 2**31 - 1),
        st.integers(1, 2**31 - 1),
        words,
        st.lists(st.integers(-(2**62), 2**62), max_size=4),
    ),
    min_size=1,
    max_size=20,
)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@settings(max_examples=40)
@given(rows=rows)
def test_a_trace_comes_back_as_it_was(tmp_path_factory, suffix, rows):
    arrivals, inputs, outputs, clients, hashes = zip(*sorted(rows, key=lambda r: r[0]), strict=True)
    trace = made(
        arrivals,
        inputs,
        outputs,
        client_id=pl.Series(clients, dtype=pl.String),
        prefix_hashes=list(hashes),
        duration_s=1e6,
        prefix_block_tokens=512,
    )
    path = tmp_path_factory.mktemp("trace") / f"t{suffix}"
    save_trace(trace, path)
    loaded = load_trace(path)
    none_is_empty = pl.col("prefix_hashes").fill_null([])  # CSV knows no difference
    assert loaded.frame.with_columns(none_is_empty).equals(trace.frame)
    assert loaded.sha256() == trace.sha256()
    assert (loaded.duration_s, loaded.provenance, loaded.prefix_block_tokens) == (
        trace.duration_s,
        trace.provenance,
        512,
    )


def test_the_sidecar_names_source_licence_duration_and_transforms(tmp_path):
    trace = made().transformed(made().frame.head(2), "cut", {"why": "test"}, {"cut_off": 1})
    _, sidecar = save_trace(trace, tmp_path / "t.parquet")
    content = json.loads(sidecar.read_text())
    assert content["source"] == "made here"
    assert content["licence"] == "none"
    assert content["duration_s"] == 10.0
    assert content["transforms"] == [
        {
            "name": "cut",
            "parameters": {"why": "test"},
            "requests_before": 3,
            "requests_after": 2,
            "counts": {"cut_off": 1},
        }
    ]


def test_nothing_is_overwritten_without_force(tmp_path):
    path = tmp_path / "t.parquet"
    save_trace(made(), path)
    before = path.read_bytes(), sidecar_path(path).read_bytes()
    with pytest.raises(OutputError, match="exists"):
        save_trace(made(duration_s=99.0), path)
    assert (path.read_bytes(), sidecar_path(path).read_bytes()) == before
    save_trace(made(duration_s=99.0), path, force=True)
    assert load_trace(path).duration_s == 99.0


def test_a_lone_sidecar_is_not_overwritten_either(tmp_path):
    (tmp_path / "t.csv.json").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        save_trace(made(), tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_name_with_wildcards_is_a_name(tmp_path, suffix):
    folder = tmp_path / "[a]*? {b}"
    folder.mkdir()
    (path, _) = save_trace(made(), folder / f"x{suffix}")
    assert load_trace(path).frame.equals(made().frame)


def test_a_name_too_long_for_the_disk_is_refused_in_words(tmp_path):
    with pytest.raises(OutputError, match="cannot write") as caught:
        save_trace(made(), tmp_path / f"{'x' * 300}.csv")
    assert "too long" in caught.value.cause


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"\.parquet or \.csv"):
        save_trace(made(), tmp_path / "t.xlsx")


def test_rows_and_sidecar_of_different_traces_are_refused(tmp_path):
    save_trace(made(), tmp_path / "a.csv")
    save_trace(made(input_tokens=(5, 6, 8)), tmp_path / "b.csv")
    (tmp_path / "b.csv").replace(tmp_path / "a.csv")
    with pytest.raises(TraceError, match="do not belong together"):
        load_trace(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: sidecar_path(path).unlink(),
        lambda path: sidecar_path(path).write_text("{"),
        lambda path: sidecar_path(path).write_text("[]"),
        lambda path: sidecar_path(path).write_text("[" * 100_000),
        lambda path: sidecar_path(path).write_text('{"schema": "beam.trace/9"}'),
        lambda path: sidecar_path(path).write_text('{"schema": "beam.trace/1"}'),
        lambda path: sidecar_path(path).write_text(
            re.sub(r'("duration_s": *)[0-9]', r"\g<1>1" + "0" * 400, sidecar_path(path).read_text())
        ),
        lambda path: path.write_bytes(b"PAR1 no more"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_trace_is_refused_in_words(tmp_path, damage):
    path = tmp_path / "t.parquet"
    save_trace(made(), path)
    damage(path)
    with pytest.raises(TraceError):
        load_trace(path)


def test_a_panic_of_polars_is_damage(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    save_trace(made(), path)

    def panics(*_, **__):
        raise pl.exceptions.PanicException("assertion failed: offset + length <= self.length")

    monkeypatch.setattr(pl, "read_parquet", panics)
    with pytest.raises(TraceError, match="cannot read the trace"):
        load_trace(path)
    with pytest.raises(ImportFormatError, match="not a readable Parquet file"):
        import_trace(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arrival_s": ()} | {"input_tokens": (), "output_tokens": ()}, "no requests"),
        ({"arrival_s": (0.0, 2.0, 1.0)}, "row 2 lies before"),
        ({"arrival_s": (-1.0, 2.0, 3.0)}, "0 or more"),
        ({"arrival_s": (0.0, 2.0, float("nan"))}, "finite"),
        ({"arrival_s": (0.0, 2.0, None)}, "empty cells"),
        ({"input_tokens": (1, 0, 1)}, "input_tokens must be 1 or more"),
        ({"output_tokens": (1, -4, 1)}, "output_tokens must be 1 or more"),
        ({"duration_s": 1.9}, "last arrival at 2 s"),
        ({"duration_s": float("nan")}, "last arrival at 2 s"),
        ({"prefix_hashes": [[1], [2], [3]]}, "how many tokens a block holds"),
    ],
)
def test_broken_rows_make_no_trace(change, words):
    with pytest.raises(TraceError, match=words):
        made(**change)


def test_wrong_types_and_repeated_ids_make_no_trace():
    frame = made().frame
    with pytest.raises(TraceError, match="each with its type"):
        Trace(frame.with_columns(pl.col("input_tokens").cast(pl.Float64)), 10.0, PROVENANCE)
    with pytest.raises(TraceError, match="each with its type"):
        Trace(frame.drop("output_tokens"), 10.0, PROVENANCE)
    with pytest.raises(TraceError, match="unique"):
        Trace(frame.with_columns(request_id=pl.lit(1, pl.Int64)), 10.0, PROVENANCE)
    with pytest.raises(TraceError, match="output_tokens is missing"):
        arrange(frame.drop("output_tokens"))


def test_the_checksum_sees_every_column_and_the_duration():
    trace = made(
        client_id=["a", "b", None], prefix_hashes=[[1, 2], [3], [4]], prefix_block_tokens=8
    )
    frame = trace.frame
    others = [
        dataclasses.replace(trace, duration_s=11.0),
        dataclasses.replace(trace, frame=frame.drop("client_id")),
        dataclasses.replace(trace, frame=frame.with_columns(client_id=pl.lit("a"))),
        dataclasses.replace(trace, frame=frame.with_columns(pl.col("input_tokens") + 1)),
        dataclasses.replace(trace, frame=frame.with_columns(pl.col("arrival_s") + 1e-9)),
        dataclasses.replace(
            trace,
            frame=frame.with_columns(prefix_hashes=pl.Series([[1], [2, 3], [4]])),
        ),
    ]
    digests = {trace.sha256(), *(other.sha256() for other in others)}
    assert len(digests) == len(others) + 1


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_a_full_disk_is_an_ordinary_error(tmp_path, name):
    """polars has an error of its own for it, which was taken for a bug."""
    steps = range(2000)
    trace = made(
        [0.01 * n for n in steps],
        [n * n % 997 + 1 for n in steps],
        [7 for _ in steps],
        duration_s=20.0,
    )
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(OutputError, match=f"cannot write .*{name}"):
            save_trace(trace, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert not list(tmp_path.iterdir())
