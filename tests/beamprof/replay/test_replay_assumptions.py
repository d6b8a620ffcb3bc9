"""What the simulated server rests on: a smoothed table, one waiting power, fitted constants."""

import json
from dataclasses import replace

import numpy as np
import pytest
from replay_cases import CLOCKS_MHZ, IDLE_W, make_table, make_trace, pass_ms, random_trace

from beam_runtime.types import StepShape
from beamprof.cli.main import main
from beamprof.devices.device import resolve_device
from beamprof.devices.power import waiting_w
from beamprof.errors import ReplayError
from beamprof.replay.assumptions import Assumptions
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.static import Static
from beamprof.replay.site import site_of
from beamprof.replay.smooth_table import smoothed
from beamprof.tables.table_file import seal_table, write_table
from beamprof.traces.trace_file import save_trace

MANY_MHZ = tuple(range(600, 1410, 50))


def scattered(table, share, seed=0):
    random = np.random.default_rng(seed)
    forward = table.columns["kind"] == "forward"
    columns = dict(table.columns)
    for name in ("latency_ms", "energy_j"):
        factor = np.exp(random.normal(0.0, share, len(forward)))
        columns[name] = np.where(forward, factor, 1.0) * columns[name]
    return seal_table(columns, table.metadata)


def test_smoothing_takes_the_scatter_out_and_leaves_the_curve():
    true = make_table(clocks=MANY_MHZ)
    rough = scattered(true, 0.03)
    smooth = smoothed(rough)
    forward = true.columns["kind"] == "forward"
    for name in ("latency_ms", "energy_j"):
        before = rough.columns[name][forward] / true.columns[name][forward] - 1
        after = smooth.columns[name][forward] / true.columns[name][forward] - 1
        assert after.std() < 0.6 * before.std()
        assert smoothed(true).columns[name] == pytest.approx(true.columns[name], rel=0.01)
    assert np.array_equal(smooth.columns["energy_j"][~forward], true.columns["energy_j"][~forward])


def test_a_smooth_table_is_never_slower_at_a_higher_clock():
    smooth = smoothed(scattered(make_table(clocks=MANY_MHZ), 0.1))
    rows = smooth.rows("forward")
    cells = np.stack([rows["prefill_tokens"], rows["decode_requests"],
                      rows["decode_context_tokens"]], axis=1)  # fmt: skip
    for cell in np.unique(cells, axis=0):
        mine = (cells == cell).all(axis=1)
        order = np.argsort(rows["clock_mhz"][mine])
        assert (np.diff(rows["latency_ms"][mine][order]) <= 0).all()


def test_the_policies_keep_their_raw_table():
    rough = scattered(make_table(clocks=MANY_MHZ), 0.1)
    site, assumed = site_of(rough, rough, ReplayOptions())
    step = StepShape(128)
    believed, true = (cost.latency_ms(step) for cost in (site.believed, site.cost))
    own = np.array([rough.columns["latency_ms"][
        (rough.columns["prefill_tokens"] == 128) & (rough.columns["clock_mhz"] == clock)
    ][0] for clock in MANY_MHZ])  # fmt: skip
    assert np.abs(true / believed - 1).max() > 0.05
    assert np.abs(np.log(own / believed)).mean() < np.abs(np.log(own / true)).mean()
    assert "the table smoothed along the clock" in assumed
    site, assumed = site_of(rough, rough, ReplayOptions(smooth=False))
    assert site.cost.latency_ms(step).tolist() == site.believed.latency_ms(step).tolist()
    assert "the table as it is" in assumed


@pytest.mark.parametrize(
    ("idle_rows", "device", "option_w", "words"),
    [
        (True, "paper", None, "90 W per waiting GPU, by the table's idle rows"),
        (True, "paper", 50.0, "50 W per waiting GPU at every clock"),
        (False, "a100-sxm4-80gb", None, "by a100-sxm4-80gb's device file"),
        (False, "of my own", None, "assumed from the lightest pass"),
    ],
)
def test_waiting_power_has_one_source_for_plant_and_policies(idle_rows, device, option_w, words):
    table = make_table(idle=idle_rows)
    table = seal_table(table.columns, {**table.metadata, "device": device})
    site, assumed = site_of(table, table, ReplayOptions(idle_power_w=option_w))
    said = [one for one in assumed if "waiting GPU" in one]
    assert len(said) == 1
    if idle_rows and option_w is None:
        words = words.replace("90 W", f"{IDLE_W / table.tp:.0f} W")
    assert words in said[0]
    assert site.cost.idle_power_w.tolist() == site.believed.idle_power_w.tolist()
    if device == "a100-sxm4-80gb":
        curve = waiting_w(resolve_device(device), np.array(CLOCKS_MHZ, dtype=float))
        assert site.cost.idle_power_w == pytest.approx(table.tp * curve)
        assert np.all(np.diff(site.cost.idle_power_w) > 0)


def test_a_request_spends_the_front_end_before_the_engine_sees_it(site):
    trace = make_trace([(0.5, 128, 3), (2.0, 128, 1)], 4)
    plain = play(trace, Static("one", 1000), site)
    fronted = play(trace, Static("one", 1000), replace(site, front_end_ms=40.0))
    assert fronted.first_token_ms - plain.first_token_ms == pytest.approx([40.0, 40.0])
    assert fronted.tokens["gap_ms"] == pytest.approx(plain.tokens["gap_ms"])
    assert fronted.arrival_ms.tolist() == [500.0, 2000.0]
    alone = 4 * (pass_ms((128, 0, 0, 0), 1000) + 2.0) + 3 * 0.5
    assert fronted.first_token_ms[0] - 500.0 == pytest.approx(alone + 40.0)


def test_noise_is_on_by_default_seeded_and_does_not_shift_the_mean(table, site):
    options = ReplayOptions()
    assert (options.noise, options.smooth) == (0.03, True)
    noisy = replace(site, noise=options.noise)
    trace = random_trace(3, requests=200)
    one, same, other = (
        play(trace, Static("one", 1000), replace(noisy, seed=seed)) for seed in (1, 1, 2)
    )
    assert one.finish_ms.tolist() == same.finish_ms.tolist()
    assert one.finish_ms.tolist() != other.finish_ms.tolist()
    still = play(trace, Static("one", 1000), site)
    assert one.busy_ms == pytest.approx(still.busy_ms, rel=0.02)


def test_published_results_assumed_less():
    options = ReplayOptions.assuming(Assumptions.PUBLISHED, seed=3, noise=None)
    assert (options.noise, options.smooth, options.idle_power_w) == (0.0, False, 45.0)
    assert (options.host_gap_ms, options.front_end_ms, options.seed) == (5.5, 0.0, 3)
    assert ReplayOptions.assuming(Assumptions.PUBLISHED, noise=0.1).noise == 0.1
    assert ReplayOptions.assuming(Assumptions.VALIDATED) == ReplayOptions()
    with pytest.raises(ReplayError, match="front_end_ms"):
        ReplayOptions(front_end_ms=-1.0)


def test_the_command_says_its_assumptions_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = make_table()
    write_table(table.columns, table.metadata, tmp_path / "small.parquet")
    save_trace(random_trace(4, requests=20), tmp_path / "day.parquet")
    words = ["replay", "-t", "small.parquet", "--trace", "day.parquet", "--policy", "vanilla"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    said = " ".join(err.split())
    for part in ("plant: the table smoothed", "3 % step noise, seed 0", "host gap 6.8 ms",
                 "front end 33 ms", "clock delay 25 ms", "unlimited KV memory"):  # fmt: skip
        assert part in said
    data = json.loads(out)["data"]
    assert ", ".join(data["assumed"]) in said
    assert main([*words, "--assume", "published", "--clock-delay", "200ms", "--seed", "5"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    for part in ("the table as it is", "no step noise", "45 W per waiting GPU at every clock",
                 "host gap 5.5 ms", "front end 0 ms", "clock delay 200 ms"):  # fmt: skip
        assert part in said
    assert main([*words, "--assume", "kind"]) == 2
    assert "published" in capsys.readouterr().err


def test_more_than_a_gpu_draws_at_work_is_no_waiting_power() -> None:
    table = make_table(idle=True)
    with pytest.raises(ReplayError, match="5000 W per waiting GPU is more than one draws at work"):
        site_of(table, table, ReplayOptions(idle_power_w=5000.0))
