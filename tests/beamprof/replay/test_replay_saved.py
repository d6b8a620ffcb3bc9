"""A replay's files and what is read back from them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from replay_cases import make_table, random_trace

from beam_runtime.types import Slo
from beamprof.errors import ReportError
from beamprof.replay import event_loop as loop
from beamprof.replay.ladder import replay
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.results import FILES, METADATA_KEY, gap_frame
from beamprof.replay.saved import load_replay


@pytest.fixture(scope="module")
def written(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replayed")
    options = ReplayOptions(slo=Slo(150.0, 90.0), noise=0.03, seed=7)
    report = replay(
        table, random_trace(5, requests=60, rate=8.0), ["static:1000", "oracle"], options,
        output=folder, command="beam replay --as-asked",
    )  # fmt: skip
    return folder, report


def copy(folder, to):
    for name in FILES:
        (to / f"{name}.parquet").write_bytes((folder / f"{name}.parquet").read_bytes())
    return to


def test_what_is_read_back_is_what_was_said(written, table):
    folder, report = written
    saved = load_replay(folder)
    assert saved.report == replace(report, paths=())
    assert {path.name for path in report.paths} == {f"{name}.parquet" for name in FILES}
    assert saved.record.command == "beam replay --as-asked"
    assert saved.record.table.sources == ("measured",)
    assert saved.record.table.rows_sha256 == table.metadata["rows_sha256"]
    assert saved.record.plant_table == saved.record.table
    assert saved.record.trace.source == "by hand"
    assert saved.record.versions["beamprof"]


def test_the_rows_give_the_answers_numbers_again(written):
    saved = load_replay(written[0])
    for rung in saved.report.rungs:
        m = rung.metrics
        ttft_ms = saved.ttft_ms(m.policy)
        assert ttft_ms.mean() == pytest.approx(m.ttft.mean_ms)
        gaps_ms, tokens = saved.gap_counts(m.policy)
        assert 1 - tokens[gaps_ms > 90.0].sum() / tokens.sum() == pytest.approx(m.attainment.tbt)
        assert 0.0 <= (gaps_ms * tokens).sum() / tokens.sum() - m.tbt.mean_ms <= 0.1


def test_gaps_are_rounded_up_so_that_late_stays_late(table, site):
    played = play(random_trace(3, requests=30), policy_named("vanilla", table), site)
    raw_ms = played.tokens["gap_ms"]
    rows = gap_frame(played)
    assert rows["tokens"].sum() == len(raw_ms)
    again_ms = np.sort(np.repeat(rows["gap_ms"].to_numpy(), rows["tokens"].to_numpy()))
    assert ((again_ms - np.sort(raw_ms)) > -2e-6).all()
    assert ((again_ms - np.sort(raw_ms)) < 0.1).all()
    exact = replace(played, tokens=np.array([(0, 0.0, 200.0), (0, 0.0, 200.01)], loop.TOKEN))
    assert gap_frame(exact)["gap_ms"].to_list() == [200.0, 200.1]


def test_steps_between_begin_with_the_setting_in_force(written):
    saved = load_replay(written[0])
    every = saved.steps.filter(policy="vanilla").collect()
    middle_ms = every["issued_ms"][len(every) // 2] + 1e-3
    rows = saved.steps_between("vanilla", middle_ms, middle_ms + 500.0)
    assert rows["issued_ms"][0] < middle_ms <= rows["issued_ms"][1]
    assert rows["issued_ms"][-1] < middle_ms + 500.0
    inside = every.filter(pl.col("issued_ms").is_between(middle_ms, middle_ms + 500.0))
    assert rows.height == inside.height + 1


def test_every_file_carries_the_record(written):
    texts = {
        pq.read_schema(written[0] / f"{name}.parquet").metadata[METADATA_KEY.encode()]
        for name in FILES
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda at: (at / "gaps.parquet").unlink(), "gaps.parquet is missing"),
        (lambda at: (at / "steps.parquet").write_bytes(b"PAR1 no"), "cannot be read as a Parquet"),
        (
            lambda at: pl.read_parquet(at / "steps.parquet").write_parquet(at / "steps.parquet"),
            "no file of a replay",
        ),
        (
            lambda at: pl.DataFrame({"clock": [1]}).write_parquet(at / "requests.parquet"),
            "no file of a replay",
        ),
    ],
)
def test_folders_that_hold_no_whole_replay(written, tmp_path, spoil, said):
    spoil(copy(written[0], tmp_path))
    with pytest.raises(ReportError, match=said) as caught:
        load_replay(tmp_path)
    assert caught.value.hint


def rewrite(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def test_rows_of_a_policy_that_are_gone(written, tmp_path):
    copy(written[0], tmp_path)
    for name in FILES:
        rewrite(
            tmp_path / f"{name}.parquet",
            lambda rows: rows.filter(pc.not_equal(rows["policy"], "static:1000")),
        )
    with pytest.raises(ReportError, match=r"no rows of static:1000"):
        load_replay(tmp_path)


def test_files_of_two_replays_do_not_mix(written, tmp_path, table):
    copy(written[0], tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    replay(make_table(latency=1.1), random_trace(1), [], output=other)
    (tmp_path / "gaps.parquet").write_bytes((other / "gaps.parquet").read_bytes())
    with pytest.raises(ReportError, match="different replays"):
        load_replay(tmp_path)


def test_an_older_answer_is_named_as_such(written, tmp_path):
    copy(written[0], tmp_path)
    for name in FILES:
        path = tmp_path / f"{name}.parquet"
        text = pq.read_schema(path).metadata[METADATA_KEY.encode()].replace(b'"rungs"', b'"steps"')
        rewrite(path, lambda rows, text=text: rows.replace_schema_metadata({METADATA_KEY: text}))
    with pytest.raises(ReportError, match="another version"):
        load_replay(tmp_path)
