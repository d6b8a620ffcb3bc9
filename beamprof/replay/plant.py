"""The plant: a discrete-event model of the serving engine, played from a trace's first request
to its last.

It has the emulator's rules (they are the same compiled functions) and what an emulator cannot
have: a table of its own, noise on every step, the clock's delay, and real output lengths. Its
memory is the requests present at one time and the results.

What it does not know: what a clock change itself costs, stages that differ, and
temperature. The composer is told when the first stage will be free; in an engine the adapter
infers that from steps that came back.
"""

import math
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from beam_runtime.emulator.setup import Setting, lasting_setting, make_setup, make_tables
from beam_runtime.emulator.state import Records, State, empty_state, records
from beam_runtime.errors import BeamError
from beam_runtime.table.smoothing import smoothed
from beam_runtime.table.step_cost import clock_index
from beam_runtime.types import Correction, EngineLimits, Knobs
from beamprof.errors import ReplayError
from beamprof.replay import event_loop as loop
from beamprof.replay.options import MAX_MODEL_LEN
from beamprof.replay.played import Played
from beamprof.replay.policies.base import Policy
from beamprof.replay.prefix_cache import make_cache
from beamprof.replay.promised import distinct_slos, promised_slos
from beamprof.replay.site import Site
from beamprof.replay.view import View
from beamprof.traces.trace import Trace

_FIRST_ROWS = 256
_STEPS = 1 << 13
_TOKENS = 1 << 15


def play(trace: Trace, policy: Policy, site: Site) -> Played:
    """Replay ``trace`` under ``policy``.

    Raises:
        ReplayError: a request that the engine can never serve.
    """
    return _Plant(trace, policy, site).run()


class _Plant:
    """One replay under way."""

    def __init__(self, trace: Trace, policy: Policy, site: Site) -> None:
        self.trace, self.policy, self.site = trace, policy, site
        self.limits = replace(site.limits, max_batched_tokens=policy.max_batched_tokens)
        _check_servable(trace, self.limits, site.kv_blocks)
        self.promised = promised_slos(trace, site.slo, site.classes)
        self.served = self.promised.copy()
        self.told = np.zeros(trace.requests, dtype=bool)  # of the end of their answers
        self.all_ended = 0  # of all requests before this one
        self.prefixes = make_cache(
            trace, self.limits.block_size, site.kv_blocks, wanted=site.prefix_cache
        )
        arrival_ms, duration_ms = trace.arrival_s * 1e3, trace.duration_s * 1e3
        self.sent = trace.requests  # all of them send themselves
        if site.concurrency is not None:
            self.sent = min(site.concurrency, trace.requests)
            arrival_ms = np.where(np.arange(trace.requests) < self.sent, 0.0, np.inf)
            duration_ms = math.inf  # it ends with the last token
        self.workload = loop.Workload(
            duration_ms,
            arrival_ms,
            arrival_ms + site.front_end_ms,
            site.front_end_ms,
            np.ascontiguousarray(trace.input_tokens),
            np.ascontiguousarray(trace.output_tokens),
            self.served,
        )
        largest = max(self.limits.max_batched_tokens, self.limits.max_num_seqs)
        believed = smoothed(site.believed) if policy.smooths else site.believed
        self.believed = make_tables(believed, largest)
        self.true = make_tables(site.cost, largest)
        self.arrived_tokens = np.cumsum(self.workload.input_tokens)
        self.random = np.random.default_rng(site.seed)
        self.state = self._empty_state(_FIRST_ROWS)
        self.plant = self._empty_plant(_FIRST_ROWS)
        self.plant.noise[:] = self._noise()
        self.steps: list[Records] = []
        self.tokens: list[Records] = []
        top = int(site.cost.clocks_mhz[-1])
        self.view = View(believed, self.limits, site.slo, site.kv_blocks, Knobs(top, 1))
        self.view.promises = distinct_slos(self.promised)
        self.clock_changes = 0
        self.idle_j = 0.0
        self.idle_until_ms = 0.0
        self.decisions = self.undecided = 0
        self.decision_s = 0.0
        self.returned = 0

    def run(self) -> Played:
        began_s = time.perf_counter()
        self.view.state = self.state
        self.view.returned = self.plant.steps[:0]
        knobs = self.policy.start(self.view)
        self.view.knobs = knobs
        self._promise(0)
        self.setting = lasting_setting(self.site.cost, knobs)
        setup = self._setup()
        tick_ms = self.policy.tick_ms
        while True:
            why = loop.advance(
                self.state, self.plant, self.workload, self.setting, setup,
                self.believed, self.true, int(self.policy.wakes), tick_ms,
            )  # fmt: skip
            if why == loop.DONE:
                break
            if why == loop.FULL:
                self._empty_records()
            elif why == loop.NO_ROOM:
                self._grow()
            elif why == loop.STUCK:
                raise ReplayError("the engine cannot admit the next request, and never will")
            else:
                self._ask()
                setup = self._setup()
                tick_ms = self._next_tick_ms(tick_ms, why)
        self._empty_records()
        return self._played(time.perf_counter() - began_s)

    def _next_tick_ms(self, tick_ms: float, why: int) -> float:
        """When the policy is asked next without an event."""
        if self.policy.refresh_ms < math.inf:
            engine, now_ms = self.state.engine[0], float(self.plant.tally["now_ms"][0])
            anybody = engine["running"] + engine["waiting"] > 0
            return now_ms + self.policy.refresh_ms if anybody else math.inf
        if why != loop.TICK:
            return tick_ms
        return math.inf if self._over() else tick_ms + self.policy.tick_ms

    def _over(self) -> bool:
        """Whether nothing is left to arrive or to be served."""
        arrived = self.plant.tally["next_arrival"][0] == self.trace.requests
        return bool(arrived and not np.isnan(self.plant.finish_ms).any())

    def _ask(self) -> None:
        began_s = time.perf_counter()
        view, now_ms = self.view, float(self.plant.tally["now_ms"][0])
        view.now_ms, view.state = now_ms, self.state
        arrived = int(self.plant.tally["next_arrival"][0])
        view.arrived_tokens = int(self.arrived_tokens[arrived - 1]) if arrived else 0
        view.arrived_ms = self.workload.queued_ms[:arrived]
        view.returned = self._newly_returned(now_ms)
        view.ended_tokens = self._newly_ended(arrived)
        serves_by = self.policy.serves_by
        try:
            knobs = self.policy.decide(view)
        except BeamError:  # as a controller: the engine goes on as it is set
            knobs = view.knobs
            self.undecided += 1
        if self.policy.serves_by != serves_by:
            self._promise(arrived)
        if knobs is not view.knobs and knobs != view.knobs:
            self._set(knobs, now_ms)
        self.decisions += 1
        self.decision_s += time.perf_counter() - began_s

    def _promise(self, first: int) -> None:
        """What requests from the first on are promised, as the policy serves it."""
        site = self.site
        served = promised_slos(self.trace, site.slo, site.classes, self.policy.served)
        self.served[first:] = served[first:]

    def _newly_ended(self, arrived: int) -> NDArray[np.int64]:
        """Tokens of answers that are complete since this was asked last."""
        first = self.all_ended
        ended = ~np.isnan(self.plant.finish_ms[first:arrived])
        newly = ended & ~self.told[first:arrived]
        self.told[first:arrived] |= ended
        while self.all_ended < arrived and self.told[self.all_ended]:
            self.all_ended += 1
        tokens: NDArray[np.int64] = self.workload.output_tokens[first:arrived][newly]
        return tokens

    def _newly_returned(self, now_ms: float) -> Records:
        steps = self.plant.steps[: self.plant.tally["steps"][0]]
        back = self.returned + int(
            np.searchsorted(steps["finished_ms"][self.returned :], now_ms, side="right")
        )
        newly = steps[self.returned : back]
        self.returned = back
        return newly

    def _set(self, knobs: Knobs, now_ms: float) -> None:
        clock, setting, view = self._clock(knobs), self.setting, self.view
        if clock == setting.clock:
            self.setting = self._setting(knobs, setting.clock_before, setting.switch_ms)
        else:
            self._idle_up_to(min(now_ms, self.workload.duration_ms))
            current = setting.clock_before if now_ms < setting.switch_ms else setting.clock
            switch_ms = now_ms + self.limits.clock_delay_ms
            self.setting = self._setting(knobs, current, switch_ms)
            self.clock_changes += 1
            view.clock_since_ms = now_ms
            view.previous_clock_mhz = int(self.site.cost.clocks_mhz[current])
        view.knobs = knobs

    def _clock(self, knobs: Knobs) -> int:
        return clock_index(self.site.cost, knobs.clock_mhz)

    def _setting(self, knobs: Knobs, before: int, switch_ms: float) -> Setting:
        return Setting(
            self._clock(knobs), before, float(switch_ms), int(knobs.chunk_tokens),
            int(knobs.microbatches), float(knobs.pace_ms),
        )  # fmt: skip

    def _setup(self) -> Records:
        setup = make_setup(self.limits, self.policy.rules, self.policy.correction)
        if self.policy.one_step_per_microbatch:
            setup["max_steps_in_flight"] = self.view.knobs.microbatches
        return setup

    def _idle_up_to(self, until_ms: float) -> None:
        """Count what all stages would draw waiting, at the clocks that were in effect.

        Until the trace's stated duration: what its last requests need after that is passes, and
        in a service that goes on others would share the waiting.
        """
        idle_w = self.true.idle_w * self.limits.pp
        from_ms, setting = self.idle_until_ms, self.setting
        switch_ms = min(max(setting.switch_ms, from_ms), until_ms)
        self.idle_j += float(idle_w[setting.clock_before]) * (switch_ms - from_ms) / 1e3
        self.idle_j += float(idle_w[setting.clock]) * (until_ms - switch_ms) / 1e3
        self.idle_until_ms = until_ms

    def _noise(self) -> NDArray[np.float64]:
        """Factors with mean 1, log-normal."""
        sigma = math.sqrt(math.log1p(self.site.noise**2))
        return self.random.lognormal(-(sigma**2) / 2, sigma, _STEPS)

    def _empty_records(self) -> None:
        """Take the loop's records. A policy is not told of the few steps under way at that time."""
        tally = self.plant.tally[0]
        self.steps.append(self.plant.steps[: tally["steps"]].copy())
        self.tokens.append(self.plant.tokens[: tally["tokens"]].copy())
        tally["steps"] = tally["tokens"] = 0
        self.plant.noise[:] = self._noise()
        self.returned = 0

    def _grow(self) -> None:
        """Twice the room for requests that are present at one time."""
        old, rows = self.state, len(self.state.requests)
        new = self._empty_state(2 * rows)
        new.engine[:], new.stage_free_ms[:] = old.engine, old.stage_free_ms
        new.flights[:] = old.flights
        new.requests[:rows], new.places[:rows] = old.requests, old.places
        new.members[:, :rows] = old.members
        queue = self.view.waiting
        new.places["waiting"][: len(queue)] = queue
        new.engine["waiting_head"] = 0
        hidden = records(2 * rows, loop.HIDDEN)
        hidden[:rows] = self.plant.hidden
        hidden["free_row"][:rows] = np.arange(2 * rows - 1, rows - 1, -1)
        self.plant.tally["free_rows"] = rows
        self.plant = self.plant._replace(hidden=hidden)
        self.state = self.view.state = new

    def _empty_state(self, rows: int) -> State:
        limits = self.limits
        return empty_state(rows, limits.max_steps_in_flight, limits.pp, self.site.kv_blocks)

    def _empty_plant(self, rows: int) -> loop.Plant:
        tally, hidden = records(1, loop.TALLY), records(rows, loop.HIDDEN)
        tally["next_sent"] = self.sent
        tally["free_rows"], hidden["free_row"] = rows, np.arange(rows - 1, -1, -1)
        return loop.Plant(
            tally=tally,
            setup=make_setup(self.limits, self.policy.rules, Correction()),
            hidden=hidden,
            noise=np.ones(_STEPS),
            steps=records(_STEPS, loop.STEP),
            tokens=records(_TOKENS, loop.TOKEN),
            first_token_ms=np.full(self.trace.requests, np.nan),
            finish_ms=np.full(self.trace.requests, np.nan),
            prefixes=self.prefixes,
        )

    def _played(self, wall_s: float) -> Played:
        plant = self.plant
        end_ms = duration_ms = float(plant.finish_ms.max())
        if self.site.concurrency is None:
            duration_ms = self.workload.duration_ms
            end_ms = max(duration_ms, end_ms)
        self._idle_up_to(duration_ms)
        steps = np.concatenate(self.steps)
        steps["clock"] = self.site.cost.clocks_mhz[steps["clock"]]
        tally = plant.tally[0]
        return Played(
            policy=self.policy.name,
            slo=self.site.slo,
            promised=self.promised,
            pp=self.limits.pp,
            duration_ms=duration_ms,
            end_ms=end_ms,
            arrival_ms=self.workload.arrival_ms,
            input_tokens=self.workload.input_tokens,
            output_tokens=self.workload.output_tokens,
            cached_tokens=plant.prefixes.cached_tokens,
            first_token_ms=plant.first_token_ms,
            finish_ms=plant.finish_ms,
            tokens=np.concatenate(self.tokens),
            steps=steps,
            active_energy_j=float(tally["active_j"]),
            idle_energy_j=self.idle_j - float(tally["covered_idle_j"]),
            busy_ms=float(tally["busy_ms"]),
            preemptions=int(tally["preempted"]),
            clock_changes=self.clock_changes,
            decisions=self.decisions,
            undecided=self.undecided,
            decision_s=self.decision_s,
            wall_s=wall_s,
        )


def _check_servable(trace: Trace, limits: EngineLimits, kv_blocks: int) -> None:
    total = trace.input_tokens + trace.output_tokens
    longest = int(total.max())
    room = min(limits.max_model_len, kv_blocks * limits.block_size)
    if longest > room:
        over = int((total > room).sum())
        at = int(np.argmax(total > room))
        raise ReplayError(
            f"{over} of {trace.requests} requests are longer than the {room} tokens that the "
            "engine can hold",
            cause=f"request {trace.frame['request_id'][at]}: {trace.input_tokens[at]} input + "
            f"{trace.output_tokens[at]} output",
            hint=f"{MAX_MODEL_LEN} {room} --over-limit drop leaves them out; or more --kv-blocks",
        )
