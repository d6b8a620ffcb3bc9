"""`beam advise` as a function: the ladder of what a person can do, least effort first.

    as it is      vLLM with its flags, clocks unlocked
    one clock     one line of nvidia-smi
    vLLM's flags  that clock, and the chunk and max_num_seqs that go with it
    BEAM          everything turned anew at each event

The two in the middle are found with hindsight on the load itself: the cheapest clock that keeps as
many requests' promises as today, and the cheapest clock and flags that keep as many as any do.
Everything is simulated, by the plant of `beam replay`.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.advice.commands import (
    AS_IT_IS,
    BEAM,
    FLAGS,
    ONE_CLOCK,
    Setting,
    commands,
    setting_words,
)
from beamprof.advice.load import Load, Observed
from beamprof.decide.bounds import largest_step
from beamprof.devices.device import resolve_device
from beamprof.errors import DeviceError, ReplayError
from beamprof.replay.goodput import promises
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.played import Played
from beamprof.replay.policies.base import Policy
from beamprof.replay.policies.beam import Beam
from beamprof.replay.policies.static import Static
from beamprof.replay.rivals import AS_GOOD, CHUNKS, KEPT_AT_ALL
from beamprof.replay.site import Site, site_of
from beamprof.tables.doubts import doubts
from beamprof.tables.leave_one_out import held_out_error

SEQUENCES = (64, 128)
NOBODY, SOME = 0.01, 0.9
_LARGE_GIB, _LARGEST_GIB = 70.0, 160.0  # of GPU memory, where vLLM's defaults change
# Whoever needs so much longer than the load lasts cannot take it.
OVERLOAD = 1.2
_HOURS_A_YEAR = 8760
# Clocks one after the other that keep fewer promises, or cost more, than one before: no lower one.
_ENOUGH = 2


@dataclass(frozen=True, slots=True)
class Today:
    """How the server runs now: vLLM's own defaults, on most GPUs."""

    chunk_tokens: int = 2048
    max_num_seqs: int = 256

    @classmethod
    def on(cls, device: str) -> Self:
        """The defaults of `vllm serve` on a GPU: larger where it has much memory.

        As vLLM 0.11 to 0.18 choose them (vllm.engine.arg_utils, get_batch_defaults).
        """
        try:
            memory_gib = resolve_device(device).memory.size_gb * 1e9 / 2**30
        except DeviceError:
            return cls()
        if memory_gib >= _LARGEST_GIB:
            return cls(16384, 1024)
        if memory_gib >= _LARGE_GIB and "a100" not in device:
            return cls(8192, 1024)
        return cls()


@dataclass(frozen=True, slots=True)
class Rung:
    """One thing to do.

    Attributes:
        name: of it.
        setting: what it sets, in words.
        commands: what to type; none where it sets nothing that is not set already.
        goodput: share of requests that keep all their SLOs.
        request_ms: mean time of a whole request; ttft_p99_ms, tbt_p50_ms: of its parts.
        power_w: mean, of all GPUs of the replica: its energy over the time that today's is spread
            over, see Played.mean_power_w.
        of_today: energy over today's.
        kwh_a_year, cost_a_year, co2_kg_a_year: if the load stays so; None where no price or
            carbon intensity was given.
    """

    name: str
    setting: str
    commands: tuple[str, ...]
    goodput: float
    request_ms: float
    ttft_p99_ms: float
    tbt_p50_ms: float
    power_w: float
    of_today: float
    kwh_a_year: float
    cost_a_year: float | None
    co2_kg_a_year: float | None


@dataclass(frozen=True, slots=True, repr=False)
class Advice:
    """The ladder, and how far to trust it.

    Attributes:
        model, device, tp, pp: what the table describes.
        load: in words; requests, duration_s: of what was played; played_s: until the last answer.
        slo: what is promised.
        rungs: as it is, one clock, vLLM's flags, BEAM; the first alone where neither the highest
            clock with the best chunk nor BEAM keeps anybody's SLOs: then there is nothing to save.
        observed: what the server itself saw, where it was asked.
        predicted_ttft_ms, predicted_tbt_ms: means of the first rung, to compare with it.
        energy_error: the table's, held out, as a share; None where it cannot be told.
        doubts: what its numbers do not rest on.
        assumed: by the simulation, a few words each.
        at_lowest_clock: the fixed clock is the table's lowest: below it nothing was looked at.
        plays: settings that were simulated.
    """

    model: str
    device: str
    tp: int
    pp: int
    load: str
    requests: int
    duration_s: float
    played_s: float
    slo: Slo
    rungs: tuple[Rung, ...]
    observed: Observed | None
    predicted_ttft_ms: float
    predicted_tbt_ms: float
    energy_error: float | None
    doubts: tuple[str, ...]
    assumed: tuple[str, ...]
    at_lowest_clock: bool
    plays: int

    def __repr__(self) -> str:
        """The ladder on a line: energy of today's, and goodput."""
        steps = ", ".join(
            f"{one.name} {one.of_today:.2f} ({100 * one.goodput:.1f} %)" for one in self.rungs
        )
        return f"Advice({self.model} on {self.device}: {steps})"

    def _repr_html_(self) -> str:
        """Its rows, in a notebook."""
        from beamprof.frames import frame

        table: str = frame(self).drop("commands")._repr_html_()
        return f"<p>{html.escape(repr(self))}</p>{table}"

    @property
    def keepable(self) -> bool:
        """Whether any rung keeps all SLOs for more than a few requests."""
        return max(rung.goodput for rung in self.rungs) >= NOBODY

    @property
    def best(self) -> Rung:
        """The cheapest that keeps as many requests' promises as today.

        Where today breaks more than a few, as many as any rung keeps.
        """
        today = self.rungs[0].goodput
        most = max(rung.goodput for rung in self.rungs)
        least = (today if today >= SOME else most) - AS_GOOD
        return min((r for r in self.rungs if r.goodput >= least), key=lambda r: r.of_today)


def advise(
    table: PerfTable | str | Path,
    load: Load,
    slo: Slo | None = None,
    *,
    today: Today | None = None,
    price_per_kwh: float | None = None,
    co2_g_per_kwh: float | None = None,
    model: str = "",
    options: ReplayOptions | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Advice:
    """What would be saved, and how.

    Args:
        table: step costs of the model on its GPUs.
        load: see advice.load.
        slo: of every request; 1 s and 200 ms by default.
        today: how the server runs now; Today.on(the table's device) by default.
        price_per_kwh: in any currency.
        co2_g_per_kwh: of the grid.
        model: what `beam profile` is told of it, such as a folder; by the table's name if empty.
        options: of the simulation; its slo and max_num_seqs are replaced.
        progress: told the name of the rung that is about to be played.

    Raises:
        ReplayError: a request that the engine can never serve, or a senseless price.
    """
    table = PerfTable.of(table)
    for name, value in (("--price", price_per_kwh), ("--carbon", co2_g_per_kwh)):
        if value is not None and not 0.0 <= value < 1e6:
            raise ReplayError(f"{name} is 0 or more, and below a million", cause=f"found {value:g}")
    today = today or Today.on(table.device)
    slo = slo or Slo()
    options = replace(options or ReplayOptions(), slo=slo, max_num_seqs=today.max_num_seqs)
    site, assumed = site_of(table, table, options)
    known, _ = largest_step(table, today.chunk_tokens)
    if known < today.chunk_tokens:
        assumed = (*assumed, f"steps of more than {known:,} tokens extrapolated from the table's")
    search = _Search(load, site, progress)
    found = search.rungs(today)
    first = found[0][1]
    now = found[0][2]
    rungs = tuple(
        _rung(
            name, outcome, first, price_per_kwh, co2_g_per_kwh,
            setting=setting_words(setting, table),
            typed=commands(name, setting, now, table, slo, model),
        )
        for name, outcome, setting in found
    )  # fmt: skip
    error = held_out_error(table)
    return Advice(
        model=table.model, device=table.device, tp=table.tp, pp=table.pp,
        load=load.words, requests=load.trace.requests, duration_s=load.trace.duration_s,
        played_s=first.played_s,
        slo=slo, rungs=rungs, observed=load.observed,
        predicted_ttft_ms=first.ttft_ms, predicted_tbt_ms=first.tbt_ms,
        energy_error=None if error is None else error.energy_mape,
        doubts=tuple(doubts(table)), assumed=assumed,
        at_lowest_clock=table.clocks_mhz[0] in {setting.clock_mhz for _, _, setting in found[1:3]},
        plays=search.plays,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a setting."""

    energy_j: float
    mean_power_w: float
    played_s: float
    goodput: float
    request_ms: float
    ttft_ms: float
    ttft_p99_ms: float
    tbt_ms: float
    tbt_p50_ms: float


class _Search:
    """Settings played, each once."""

    def __init__(self, load: Load, site: Site, progress: Callable[[str], None]) -> None:
        self._trace, self._site, self._progress = load.trace, site, progress
        self._found: dict[Setting, _Outcome] = {}

    @property
    def plays(self) -> int:
        return len(self._found)

    def rungs(self, today: Today) -> list[tuple[str, _Outcome, Setting]]:
        """Name, outcome and setting, least effort first."""
        clocks = [int(clock) for clock in self._site.cost.clocks_mhz[::-1]]
        now = Setting(clocks[0], today.chunk_tokens, today.max_num_seqs)
        self._progress(AS_IT_IS)
        least = self.play(now).goodput - AS_GOOD
        chunks = sorted({*CHUNKS, now.chunk_tokens})
        # Another chunk may keep promises that today's breaks: then that is what is asked for.
        kept = max((replace(now, chunk_tokens=chunk) for chunk in chunks), key=self._goodness)
        beam = Setting(None, Beam.max_batched_tokens, today.max_num_seqs)
        goodput = self.play(kept).goodput
        if goodput < NOBODY:
            # No clock and no chunk makes more of a server than it has; an SLO is another thing.
            overload = self.play(kept).played_s > OVERLOAD * self._trace.duration_s
            self._progress(BEAM)
            if overload or self.play(beam).goodput < NOBODY:
                return [(AS_IT_IS, self.play(now), now)]
        # Who keeps half or fewer saves nothing by keeping as few for less.
        one, flags = now, now if goodput <= least + 2 * AS_GOOD else kept
        if self.play(now).goodput >= KEPT_AT_ALL:
            self._progress(ONE_CLOCK)
            one = self._cheapest(clocks, [now.chunk_tokens], now, least)
        if goodput >= KEPT_AT_ALL:
            self._progress(FLAGS)
            least = max(least, goodput - AS_GOOD)
            start = one if self.play(one).goodput >= least else kept
            flags = self._fewer(self._cheapest(clocks, chunks, start, least), least)
        self._progress(BEAM)
        return self._told(now, one, flags, beam)

    def _fewer(self, flags: Setting, least: float) -> Setting:
        """With fewer sequences, where that is cheaper and keeps as much."""
        for count in SEQUENCES:
            if count < flags.max_num_seqs:
                setting = replace(flags, max_num_seqs=count)
                flags = setting if self._better(setting, flags, least) else flags
        return flags

    def _told(self, *settings: Setting) -> list[tuple[str, _Outcome, Setting]]:
        names = (AS_IT_IS, ONE_CLOCK, FLAGS, BEAM)
        return [(name, self.play(s), s) for name, s in zip(names, settings, strict=True)]

    def _cheapest(
        self, clocks: Sequence[int], chunks: Sequence[int], start: Setting, least: float
    ) -> Setting:
        """Down the clocks at each chunk, until there is nothing to be had any more."""
        best = start
        for chunk in chunks:
            vain, least_j = 0, np.inf
            for clock in clocks:
                setting = replace(start, clock_mhz=clock, chunk_tokens=chunk)
                if self._better(setting, best, least):
                    best = setting
                outcome = self.play(setting)
                dearer, fewer = outcome.energy_j >= least_j, outcome.goodput < least
                vain = vain + 1 if dearer or fewer else 0
                least_j = min(least_j, outcome.energy_j)
                if vain >= _ENOUGH:
                    break
        return best

    def _goodness(self, setting: Setting) -> tuple[float, float]:
        """Most promises kept; of equal ones the least energy."""
        outcome = self.play(setting)
        return outcome.goodput, -outcome.energy_j

    def _better(self, setting: Setting, than: Setting, least: float) -> bool:
        one, other = self.play(setting), self.play(than)
        return one.goodput >= least and one.energy_j < other.energy_j

    def play(self, setting: Setting) -> _Outcome:
        if setting not in self._found:
            policy: Policy = (
                Beam("beam")
                if setting.clock_mhz is None
                else Static("static", setting.clock_mhz, setting.chunk_tokens)
            )
            limits = replace(self._site.limits, max_num_seqs=setting.max_num_seqs)
            played = play(self._trace, policy, replace(self._site, limits=limits))
            self._found[setting] = _outcome(played)
        return self._found[setting]


def _outcome(played: Played) -> _Outcome:
    ttft_ms = played.first_token_ms - played.arrival_ms
    gaps_ms = played.tokens["gap_ms"]
    return _Outcome(
        energy_j=played.energy_j,
        mean_power_w=played.mean_power_w,
        played_s=played.end_ms / 1e3,
        goodput=promises(played).goodput,
        request_ms=float((played.finish_ms - played.arrival_ms).mean()),
        ttft_ms=float(ttft_ms.mean()),
        ttft_p99_ms=float(np.percentile(ttft_ms, 99)),
        tbt_ms=float(gaps_ms.mean()) if len(gaps_ms) else 0.0,
        tbt_p50_ms=float(np.median(gaps_ms)) if len(gaps_ms) else 0.0,
    )


def _rung(
    name: str,
    outcome: _Outcome,
    today: _Outcome,
    price_per_kwh: float | None,
    co2_g_per_kwh: float | None,
    *,
    setting: str,
    typed: tuple[str, ...],
) -> Rung:
    of_today = outcome.energy_j / today.energy_j
    power_w = of_today * today.mean_power_w  # the same requests, over the same time
    kwh = power_w * _HOURS_A_YEAR / 1e3
    return Rung(
        name=name,
        setting=setting,
        commands=typed,
        goodput=outcome.goodput,
        request_ms=outcome.request_ms,
        ttft_p99_ms=outcome.ttft_p99_ms,
        tbt_p50_ms=outcome.tbt_p50_ms,
        power_w=power_w,
        of_today=of_today,
        kwh_a_year=kwh,
        cost_a_year=None if price_per_kwh is None else kwh * price_per_kwh,
        co2_kg_a_year=None if co2_g_per_kwh is None else kwh * co2_g_per_kwh / 1e3,
    )
