"""Look at BEAM, and change its mind, while vLLM serves.

A small HTTP server (http_server.py) runs in the EngineCore process, beside vLLM's own /metrics:
BEAM's numbers are made in this process. Status and changes are methods of EngineCore as well, for
whoever holds an engine object:

    await engine.engine_core.call_utility_async("beam_status")
"""

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from beam_runtime.engines.config import EmbeddedPolicy, positive
from beam_runtime.engines.vllm.metrics import exposition
from beam_runtime.errors import BeamError, ClockError
from beam_runtime.types import Slo

if TYPE_CHECKING:
    from beam_runtime.engines.vllm.embedded import Embedded

_LOG = logging.getLogger("beam_runtime.vllm")


class Control:
    """What may be asked of and told to one embedded BEAM. Called from any thread."""

    def __init__(self, embedded: "Embedded") -> None:
        self._embedded = embedded

    def status(self) -> dict[str, Any]:
        """Everything, in plain values."""
        beam = self._embedded
        controller = beam.controller
        status, orders = controller.status, controller.orders
        return {
            "policy": str(beam.policy),
            "steering": beam.steering,
            "reason": beam.failure or status.reason,
            "clocks": status.clocks,
            "knobs": asdict(orders.knobs),
            "why": orders.why,
            # While BEAM observes: what it would have done.
            "decided": None if orders.decision is None else asdict(orders.decision.knobs),
            "slo": {
                name: value
                for name, value in asdict(beam.slo).items()
                if name.endswith("_ms") and value is not None
            },
            "slo_token_ms": beam.slo.token_ms,
            "correction": asdict(status.correction),
            "counts": asdict(status.counts),
            "odd_events": status.odd_events,
            "dropped_events": status.dropped_events,
            "requests": len(beam.view.followed),
            "not_steering": self._not_steering(),
            "log": {
                "path": beam.log and str(beam.log.path),
                "failed": bool(beam.log_failure),
                "failure": beam.log_failure,
            },
            "tally": beam.tally.plain(),
            "about": dict(beam.about),
            "searches": status.counts.decisions + status.counts.late_decisions,
            "measured": self._measured(),
        }

    def metrics(self) -> str:
        """The same for Prometheus."""
        beam = self._embedded
        about = {**beam.about, "policy": str(beam.policy)}
        return "".join(exposition(self.status(), beam.tally, about))

    def health(self) -> dict[str, Any]:
        """Whether BEAM is at work. Where it is not, vLLM serves all the same."""
        beam = self._embedded
        failure = beam.failure or ("" if beam.controller.is_open else "BEAM has been stopped")
        return {"healthy": not failure, "failure": failure, "steering": beam.steering}

    def _not_steering(self) -> str:
        """Why BEAM does not steer, as one of a few words; empty while it does."""
        beam = self._embedded
        if beam.steering:
            return ""
        if beam.failure:
            return "failed"
        if beam.policy is not EmbeddedPolicy.STEER:
            return "asked to observe"
        reason = beam.controller.status.reason or beam.controller.orders.why
        return reason.partition(":")[0].partition(" (")[0]

    def _measured(self) -> dict[str, float | None]:
        try:
            reading = self._embedded.wattmeter and self._embedded.wattmeter.read()
        except ClockError as error:
            _LOG.debug("no energy counter: %s", error)
            reading = None
        return asdict(reading) if reading else {"energy_j": None, "power_w": None}

    def change(self, wish: Any) -> dict[str, Any]:
        """Do what is asked; returns the status after it.

        Raises:
            BeamError: the wish is not understood; nothing is changed then.
        """
        if not isinstance(wish, dict) or not wish or set(wish) - {"policy", "slo", "resume"}:
            raise BeamError(
                f"not understood: {str(wish)[:80]}",
                hint='{"policy": "observe" | "steer"}, {"slo": {"ttft_ms": 800}}, {"resume": true}',
            )
        policy, slo = wish.get("policy"), wish.get("slo")
        # OFF is decided before vLLM starts: hooks that are there keep watching.
        if policy is not None and policy not in (EmbeddedPolicy.OBSERVE, EmbeddedPolicy.STEER):
            raise BeamError(f"policy must be observe or steer, found {str(policy)[:80]}")
        resume = wish.get("resume")
        if resume is not None and not isinstance(resume, bool):
            raise BeamError(f"resume must be true or false, found {str(resume)[:80]}")
        promised = None if slo is None else _slo(slo, self._embedded.slo)
        if policy is not None:
            self._embedded.obey(EmbeddedPolicy(policy))
        if promised is not None:
            self._embedded.promise(promised)
        if resume:
            self._embedded.controller.resume()
        _LOG.warning("BEAM was told: %s", json.dumps(wish))
        return self.status()


def _slo(raw: Any, now: Slo) -> Slo:
    times = ("ttft_ms", "tbt_ms", "tpot_ms", "e2e_ms")
    if not isinstance(raw, dict) or set(raw) - set(times):
        raise BeamError(f"slo must give ttft_ms and one of {', '.join(times[1:])}, found {raw!r}")
    values: dict[str, Any] = {}
    for name, value in raw.items():
        number = positive(value)
        if number is None:
            raise BeamError(f"slo.{name} must be milliseconds above 0, found {str(value)[:80]}")
        values[name] = number
    if len(values.keys() - {"ttft_ms"}) > 1:
        raise BeamError(f"slo has one kind of streaming, found {', '.join(sorted(values))}")
    return now.revised(**values)


def add_utilities(engine_core_class: type) -> None:
    """Give EngineCore the two calls, by which its clients reach them."""

    def beam_status(core: Any) -> dict[str, Any] | None:
        beam = getattr(core.scheduler, "beam", None)
        return None if beam is None else Control(beam).status()

    def beam_change(core: Any, wish: dict[str, Any]) -> dict[str, Any] | None:
        beam = getattr(core.scheduler, "beam", None)
        return None if beam is None else Control(beam).change(wish)

    for call in (beam_status, beam_change):
        setattr(engine_core_class, call.__name__, call)
