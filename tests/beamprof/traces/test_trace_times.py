"""Times on any clock: a unit is what the file says or proves, and memory goes with rows."""

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamprof.errors import BeamError, ImportFormatError, TraceError
from beamprof.traces.importers.timestamps import seconds_from_first
from beamprof.traces.importing import ImportOptions, import_trace
from beamprof.traces.policies import BadRows
from beamprof.traces.statistics import trace_statistics

OURS = "arrival_s,input_tokens,output_tokens\n"
DROP = ImportOptions(bad_rows=BadRows.DROP)


def write(tmp_path, rows, name="t.jsonl"):
    path = tmp_path / name
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows))
    return path


def mooncake(*times, tokens=600, ids=(1, 2), **more):
    row = {"input_length": tokens, "output_length": 9, "hash_ids": list(ids), **more}
    return [{"timestamp": time, **row} for time in times]


def lengths(*times, **more):
    return [{"timestamp": time, "input_length": 5, "output_length": 2, **more} for time in times]


def ours(*times):
    return OURS + "".join(f"{time!r},5,2\n" for time in times)


def counted_from(trace):
    return trace.provenance.transforms[0].parameters.get("counted_from_s")


EPOCH = {
    "Mooncake in epoch ms": (mooncake(1790000000000, 1790000001500, 1790000004000), {}),
    "ours in epoch s": (ours(1790000000.0, 1790000001.5, 1790000004.0), {}),
    "aiperf in epoch ms": (
        lengths(1790000000000, 1790000001500, 1790000004000, session_id="a"), {},
    ),
    "guidellm in epoch s": (lengths(1790000000.0, 1790000001.5, 1790000004.0), {}),
    "nobody's in epoch ns": (
        lengths(1790000000000000000, 1790000001500000000, 1790000004000000000), {},
    ),
    "ours in epoch ms, as the user says": (
        ours(1790000000000, 1790000001500, 1790000004000), {"time_unit": "ms"},
    ),
    "Vidur's in epoch s": (
        "arrived_at,num_prefill_tokens,num_decode_tokens\n"
        "1790000000.0,5,2\n1790000001.5,5,2\n1790000004.0,5,2\n",
        {},
    ),
    "seconds of a day": (ours(68400.0, 68401.5, 68404.0), {}),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "options"), EPOCH.values(), ids=EPOCH)
def test_times_from_elsewhere_count_from_the_first_request_and_the_record_says_so(
    tmp_path, rows, options
):
    trace = import_trace(write(tmp_path, rows), options=ImportOptions(**options))
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 1.5, 4.0], abs=1e-6)
    assert trace.duration_s == 4.0
    assert counted_from(trace) in (1790000000.0, 68400.0)


def test_times_from_the_traces_start_stay(tmp_path):
    trace = import_trace(write(tmp_path, ours(3.0, 10.0)))
    assert trace.arrival_s.tolist() == [3.0, 10.0]
    assert counted_from(trace) is None


def test_a_stated_duration_keeps_the_silence_before_the_first_request(tmp_path):
    path = write(tmp_path, ours(500.0, 510.0))
    assert import_trace(path).arrival_s.tolist() == [0.0, 10.0]
    kept = import_trace(path, options=ImportOptions(duration_s=600.0))
    assert kept.arrival_s.tolist() == [500.0, 510.0]


AMBIGUOUS = {
    "three lengths and bare numbers": (lengths(0, 1000, 2000), "has no unit"),
    "Mooncake's columns with fractions": (mooncake(0, 42.25, 3600.5), "whole milliseconds"),
    "Mooncake's columns in whole seconds": (
        mooncake(*range(0, 3600, 2)), "timestamps look like seconds",
    ),
    "Mooncake's columns in epoch seconds": (mooncake(1790000000, 1790000004), "in s"),
    "Mooncake's columns in epoch ns": (
        mooncake(1790000000000000000, 1790000004000000000), "in ns",
    ),
    "our seconds in epoch ms": (ours(1790000000000, 1790000004000), "in ms"),
    "aiperf's turns in fractions": (lengths(0.0, 0.25, 4.5, session_id="a"), "has no unit"),
    "aiperf's turns in whole seconds": (lengths(*range(500), session_id="a"), "has no unit"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "words"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_unit_in_doubt_is_refused_with_both_readings(tmp_path, rows, words):
    path = write(tmp_path, rows)
    with pytest.raises(ImportFormatError, match=words) as caught:
        import_trace(path)
    assert "--time-unit" in str(caught.value)


@pytest.mark.parametrize("rows", [rows for rows, _ in AMBIGUOUS.values()], ids=AMBIGUOUS)
@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_the_user_may_say_the_unit(tmp_path, rows, unit):
    path = write(tmp_path, rows)
    scale = {"s": 1.0, "ms": 1e-3, "ns": 1e-9}[unit]
    times = (
        [float(line.split(",")[0]) for line in rows.splitlines()[1:]]
        if isinstance(rows, str)
        else [row["timestamp"] for row in rows]
    )
    span_s = (times[-1] - times[0]) * scale
    try:
        trace = import_trace(path, options=ImportOptions(time_unit=unit))
    except TraceError as error:
        assert span_s > 3e7, error
        return
    assert trace.arrival_s[-1] - trace.arrival_s[0] == pytest.approx(span_s, rel=1e-6, abs=1e-6)


def test_dates_that_are_written_as_one_number_are_no_time_in_any_unit(tmp_path):
    path = write(tmp_path, lengths(20240510235830, 20240510235959, 20240511000001))
    for options in (ImportOptions(), ImportOptions(time_unit="ms")):
        with pytest.raises(ImportFormatError, match="dates without separators, such as 20240510"):
            import_trace(path, options=options)


def test_an_unknown_unit_is_refused():
    with pytest.raises(ImportFormatError, match="--time-unit: expected one of s, ms"):
        ImportOptions(time_unit="min")


def test_one_row_far_from_all_others_is_named_or_dropped_and_counted(tmp_path):
    path = write(tmp_path, ours(0.0, 1.0, 2.0, 3.0, 1790000000.0))
    with pytest.raises(TraceError, match=r"row 4 .*57 years") as caught:
        import_trace(path)
    assert "--bad-rows drop" in str(caught.value)
    trace = import_trace(path, options=DROP)
    assert (trace.requests, trace.duration_s) == (4, 3.0)
    assert trace.provenance.transforms[0].counts == {"far_from_all_others": 1}


def test_a_first_row_without_the_epoch_of_the_others_is_far_too(tmp_path):
    path = write(tmp_path, mooncake(0, 1790000000000, 1790000001000, 1790000004000))
    with pytest.raises(TraceError, match=r"row 1 .*years"):
        import_trace(path)
    assert import_trace(path, options=DROP).arrival_s.tolist() == [0.0, 1.0, 4.0]


def test_a_quiet_week_between_requests_is_a_trace(tmp_path):
    trace = import_trace(write(tmp_path, ours(0.0, 1.0, 604800.0, 604801.0)))
    assert trace.duration_s == 604801.0
    assert trace_statistics(trace).bins[0].bins == 604801


@given(
    first=st.floats(-1e18, 1e18) | st.sampled_from([0.0, 1.79e9, 1.79e12, 1.79e15, 1.79e18]),
    gaps=st.lists(st.floats(0, 1e12) | st.floats(0, 10), min_size=0, max_size=6),
    form=st.sampled_from(["ours", "mooncake", "lengths", "aiperf", "vidur"]),
    whole=st.booleans(),
)
def test_any_clock_ends_in_a_trace_or_in_words(tmp_path_factory, first, gaps, form, whole):
    times = [first]
    for gap in gaps:
        times.append(times[-1] + gap)
    times = [int(time) if whole else time for time in times]
    rows = {
        "ours": lambda: ours(*times),
        "mooncake": lambda: mooncake(*times),
        "lengths": lambda: lengths(*times),
        "aiperf": lambda: lengths(*times, session_id="a"),
        "vidur": lambda: (
            "arrived_at,num_prefill_tokens,num_decode_tokens\n"
            + "".join(f"{time!r},5,2\n" for time in times)
        ),
    }[form]()
    try:
        trace = import_trace(write(tmp_path_factory.mktemp("any"), rows))
    except BeamError:
        return
    # No trace begins after years of nothing, and its numbers can be had.
    assert trace.arrival_s[0] <= max(60.0, trace.arrival_s[-1] - trace.arrival_s[0])
    assert trace_statistics(trace).requests == len(times)


@pytest.mark.parametrize(
    "odd",
    ["2024-05-10 00:00:02.\u0661", "\u0662\u0660\u0662\u0664-05-10 00:00:02",
     "2024-05-10 00:00:0\u096c", "2024-05-10 00:00:02+\u06601:00"],
)  # fmt: skip
def test_digits_of_another_script_are_no_time(odd):
    times = pl.DataFrame({"t": ["2024-05-10 00:00:01.5", odd, "2024-05-10 00:00:03"]})
    assert times.select(seconds_from_first("t")).to_series().to_list() == [0.0, None, 1.5]
