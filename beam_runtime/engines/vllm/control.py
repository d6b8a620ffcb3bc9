"""Look at BEAM, and change its mind, while vLLM serves.

    GET  /status    what it does and why, as JSON
    GET  /metrics   the same for Prometheus
    POST /control   {"policy": "observe"}, {"slo": {"ttft_ms": 800}}, {"resume": true}

A small HTTP server in the EngineCore process, on the loopback interface unless told otherwise,
beside vLLM's own /metrics: BEAM's numbers are made in this process. The same three are methods
of EngineCore, for whoever holds an engine object:

    await engine.engine_core.call_utility_async("beam_status")
"""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import asdict
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from beam_runtime.engines.config import EmbeddedPolicy, positive
from beam_runtime.errors import BeamError, ClockError
from beam_runtime.types import Slo

if TYPE_CHECKING:
    from beam_runtime.engines.vllm.embedded import Embedded

_LOG = logging.getLogger("beam_runtime.vllm")
_LONGEST_BODY = 64 * 1024


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
            "slo": asdict(beam.slo),
            "correction": asdict(status.correction),
            "counts": asdict(status.counts),
            "odd_events": status.odd_events,
            "dropped_events": status.dropped_events,
            "requests": len(beam.view.followed),
            "tally": asdict(beam.tally),
            "searches": status.counts.decisions + status.counts.late_decisions,
            "measured": self._measured(),
        }

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
                f"not understood: {wish!r}",
                hint='{"policy": "observe" | "steer"}, {"slo": {"ttft_ms": 800}}, {"resume": true}',
            )
        policy, slo = wish.get("policy"), wish.get("slo")
        # OFF is decided before vLLM starts: hooks that are there keep watching.
        if policy is not None and policy not in (EmbeddedPolicy.OBSERVE, EmbeddedPolicy.STEER):
            raise BeamError(f"policy must be observe or steer, found {policy!r}")
        promised = None if slo is None else _slo(slo, self._embedded.slo)
        if policy is not None:
            self._embedded.obey(EmbeddedPolicy(policy))
        if promised is not None:
            self._embedded.promise(promised)
        if wish.get("resume"):
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


def serve(control: Control, port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """Answer on ``port`` (0 = any free one) until shutdown() and server_close().

    Raises:
        BeamError: the port is taken.
    """
    try:
        server = ThreadingHTTPServer((host, port), _handler(control))
    except OSError as error:
        raise BeamError(
            f"BEAM's metrics cannot be served on {host}:{port}",
            cause=error.strerror,
            hint="name another metrics_port",
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="beam-metrics", daemon=True).start()
    return server


def _local(headers: Message) -> bool:
    """Whether a browser's page elsewhere did not send this: any page may post to a local port."""
    origin, host = headers.get("Origin"), headers.get("Host", "")
    name = urlsplit(f"//{host}").hostname
    try:
        own = name == "localhost" or ip_address(name or "").is_loopback
    except ValueError:
        own = False
    return own and (origin is None or urlsplit(origin).netloc == host)


def _handler(control: Control) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/status":
                self._answer(200, json.dumps(control.status(), default=str))
            elif self.path == "/metrics":
                self._answer(200, "".join(exposition(control.status())), "text/plain")
            else:
                self._answer(404, '{"error": "there are /status, /metrics and /control"}')

        def do_POST(self) -> None:
            try:
                if not _local(self.headers):
                    self._answer(403, '{"error": "asked for by a page of another origin or host"}')
                    return
                if self.path != "/control":
                    raise BeamError("POST goes to /control")
                length = int(self.headers.get("Content-Length") or 0)
                if not 0 < length <= _LONGEST_BODY:
                    raise BeamError("a JSON object is expected")
                answer = control.change(json.loads(self.rfile.read(length)))
            except (BeamError, ValueError) as error:
                self._answer(400, json.dumps({"error": str(error)}))
            else:
                self._answer(200, json.dumps(answer, default=str))

        def _answer(self, code: int, text: str, kind: str = "application/json") -> None:
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Not a line per scrape."""

    return Handler


# name, type, help, where in the status
_METRICS = (
    ("beam_steering", "gauge", "1 while BEAM steers", ("steering",)),
    ("beam_clock_mhz", "gauge", "clock asked for", ("knobs", "clock_mhz")),
    ("beam_chunk_tokens", "gauge", "token budget of a step", ("knobs", "chunk_tokens")),
    ("beam_microbatches", "gauge", "groups of decodes", ("knobs", "microbatches")),
    ("beam_pace_ms", "gauge", "longest hold of a ready batch", ("knobs", "pace_ms")),
    ("beam_slo_ttft_ms", "gauge", "default TTFT SLO", ("slo", "ttft_ms")),
    ("beam_slo_tbt_ms", "gauge", "default TBT SLO", ("slo", "tbt_ms")),
    ("beam_prefill_scale", "gauge", "measured over predicted", ("correction", "prefill_scale")),
    ("beam_decode_scale", "gauge", "measured over predicted", ("correction", "decode_scale")),
    ("beam_requests", "gauge", "requests in the engine", ("requests",)),
    ("beam_decisions_total", "counter", "decisions made", ("counts", "decisions")),
    ("beam_late_decisions_total", "counter", "dropped as late", ("counts", "late_decisions")),
    ("beam_decision_ms_sum", "counter", "time of all searches", ("counts", "search_ms")),
    ("beam_decision_count", "counter", "searches done, late ones too", ("searches",)),
    ("beam_failed_searches_total", "counter", "searches failed", ("counts", "failed_searches")),
    ("beam_clock_failures_total", "counter", "clocks refused", ("counts", "clock_failures")),
    ("beam_fallbacks_total", "counter", "times BEAM stopped steering", ("counts", "falls")),
    ("beam_steps_total", "counter", "engine steps", ("tally", "steps")),
    ("beam_holds_total", "counter", "engine rounds held back", ("tally", "holds")),
    ("beam_completions_total", "counter", "requests done", ("tally", "completions")),
    ("beam_aborts_total", "counter", "requests aborted", ("tally", "aborts")),
    ("beam_preemptions_total", "counter", "requests preempted", ("tally", "preemptions")),
    ("beam_passed_over_total", "counter", "prompts that moved only without BEAM",
     ("tally", "passed_over")),
    ("beam_ttft_ms_sum", "counter", "actual TTFT, summed", ("tally", "ttft_ms")),
    ("beam_ttft_predicted_ms_sum", "counter", "predicted TTFT, summed over the same requests",
     ("tally", "predicted_ttft_ms")),
    ("beam_ttft_count", "counter", "first tokens with a prediction", ("tally", "ttfts")),
    ("beam_tbt_ms_sum", "counter", "actual gaps between tokens, summed", ("tally", "tbt_ms")),
    ("beam_tbt_count", "counter", "gaps between tokens", ("tally", "tbts")),
    ("beam_tbt_predicted_ms_sum", "counter",
     "predicted longest gap of each token's request, summed", ("tally", "predicted_tbt_ms")),
    ("beam_tbt_compared_ms_sum", "counter", "actual gaps of the same tokens, summed",
     ("tally", "predicted_actual_tbt_ms")),
    ("beam_tbt_compared_count", "counter", "gaps with a prediction", ("tally", "predicted_tbts")),
    ("beam_first_tokens_total", "counter", "first tokens", ("tally", "first_tokens")),
    ("beam_late_ttft_total", "counter", "of these, TTFT SLOs missed", ("tally", "late_ttfts")),
    ("beam_late_tbt_total", "counter", "TBT SLOs missed, by token", ("tally", "late_tbts")),
    ("beam_active_energy_j_total", "counter", "energy of all passes as the table has it",
     ("tally", "active_energy_j")),
    ("beam_gpu_energy_j_total", "counter", "energy of the replica's GPUs, measured",
     ("measured", "energy_j")),
    ("beam_gpu_power_w", "gauge", "power of the replica's GPUs, measured since the last scrape",
     ("measured", "power_w")),
)  # fmt: skip


def exposition(status: dict[str, Any]) -> Iterator[str]:
    """Prometheus' text format, version 0.0.4; what is not known here is left out."""
    for name, kind, text, path in _METRICS:
        value: Any = status
        for key in path:
            value = value[key]
        if value is None:
            continue
        yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {float(value):.10g}\n"
