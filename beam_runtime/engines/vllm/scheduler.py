"""BEAM in vLLM, unforked.

    export BEAM_CONFIG=/etc/beam.toml
    vllm serve MODEL --scheduler-cls beam_runtime.engines.vllm.make_scheduler

vLLM calls the factory inside its EngineCore process where it would construct its own
scheduler. It gets that very class with hooks around four methods (embedded.py), or, where
BEAM cannot work, the class as it is and one line saying why. Known to fit 0.11 to 0.33 by what
they offer, never by their number.

What it cannot do: steer engines that compute together as one data-parallel group.
"""

import logging
import signal
import threading
import time
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from beam_runtime.control.pipeline_times import PipelineTimes
from beam_runtime.engines.config import EmbeddedConfig, EmbeddedPolicy
from beam_runtime.engines.vllm import features as vllm_features
from beam_runtime.engines.vllm.control import Control, add_utilities
from beam_runtime.engines.vllm.embedded import Embedded
from beam_runtime.engines.vllm.gate import install
from beam_runtime.engines.vllm.http_server import ControlServer
from beam_runtime.engines.vllm.limits import class_of, engine_limits, load_table, slo_of
from beam_runtime.engines.vllm.power import open_wattmeter
from beam_runtime.engines.vllm.replica import Replica
from beam_runtime.engines.vllm.view import SchedulerView
from beam_runtime.errors import BeamError
from beam_runtime.types import Follows

if TYPE_CHECKING:
    from beam_runtime.control.decision_log import DecisionLog
    from beam_runtime.table.perf_table import PerfTable

_LOG = logging.getLogger("beam_runtime.vllm")


def make_scheduler(*args: Any, **kwargs: Any) -> Any:
    """A vLLM scheduler, steered by BEAM where that is possible.

    Args:
        *args: what vLLM gives its scheduler class.
        **kwargs: the same by name; ``vllm_config`` is among them.
    """
    vllm_config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    base = own_class(vllm_config)
    try:
        config = _permitted(vllm_config, base)
    except Exception as error:
        _stay_out(error)
        return base(*args, **kwargs)
    if config.policy is EmbeddedPolicy.OFF:
        _LOG.warning("BEAM is off")
        return base(*args, **kwargs)
    scheduler = hooked(base)(*args, **kwargs)
    try:
        scheduler.beam = embed(scheduler, vllm_config, config)
    except Exception as error:  # a scheduler with idle hooks is the scheduler itself
        _stay_out(error)
    return scheduler


def own_class(vllm_config: Any) -> type:
    """The scheduler class that vLLM would take by itself, were none named."""
    kind = "Diffusion" if getattr(vllm_config, "diffusion_config", None) is not None else ""
    # Under the wrong base vLLM would schedule decodes twice.
    asynchronous = bool(getattr(vllm_config.scheduler_config, "async_scheduling", False))
    module = "diffusion_scheduler" if kind else "async_scheduler" if asynchronous else "scheduler"
    found: type = getattr(
        import_module(f"vllm.v1.core.sched.{module}"),
        f"{kind}{'Async' if asynchronous else ''}Scheduler",
    )
    return found


def hooked(base: type) -> type:
    """``base`` with BEAM's hooks; they do nothing until ``beam`` is set."""

    class BeamScheduler(base):  # type: ignore[misc]
        beam: Embedded | None = None
        beam_closed = False  # for the length of one EngineCore step: schedule nothing, collect

        def has_requests(self) -> bool:
            return not self.beam_closed and super().has_requests()

        def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            result = super().add_request(request, *args, **kwargs)
            if self.beam is not None:
                self.beam.added(request)
            return result

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            if self.beam is None:
                return super().schedule(*args, **kwargs)
            with self.beam.constrained():
                output = super().schedule(*args, **kwargs)
            self.beam.issued(output)
            return output

        def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = super().update_from_output(scheduler_output, *args, **kwargs)
            if self.beam is not None:
                self.beam.returned(scheduler_output, outputs)
            return outputs

        def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
            names = _names(request_ids, self.requests)
            result = super().finish_requests(request_ids, *args, **kwargs)
            if self.beam is not None:
                self.beam.aborted(names)
            return result

        def shutdown(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().shutdown(*args, **kwargs)
            finally:
                if self.beam is not None:
                    self.beam.close()

    BeamScheduler.__name__ = BeamScheduler.__qualname__ = f"Beam{base.__name__}"
    return BeamScheduler


def _names(request_ids: Any, requests: Any) -> list[str]:
    if request_ids is None:
        return list(requests)
    return [request_ids] if isinstance(request_ids, str) else list(request_ids)


def _stay_out(error: Exception) -> None:
    if isinstance(error, BeamError):
        _LOG.warning("vLLM serves without BEAM: %s", error)
    else:
        _LOG.warning("vLLM serves without BEAM: %s", error, exc_info=error)


def _permitted(vllm_config: Any, base: type) -> EmbeddedConfig:
    """The configuration, if BEAM fits this vLLM and this way of serving. Raises BeamError."""
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.request import Request

    config = Replica.of(vllm_config).own(EmbeddedConfig.from_environment())
    if config.policy is EmbeddedPolicy.OFF:
        return config
    missing = vllm_features.missing(base, Request, SchedulerOutput, EngineCoreOutput)
    if missing:
        raise _misfit(missing)
    _refuse(vllm_features.unsupported(vllm_config))
    return config


def _refuse(reasons: tuple[str, ...]) -> None:
    if reasons:
        raise BeamError(f"BEAM does not steer {'; '.join(reasons)}")


def _misfit(missing: tuple[str, ...]) -> BeamError:
    import vllm

    return BeamError(
        f"this vLLM ({vllm.__version__}) lacks what BEAM needs: {', '.join(missing)}",
        hint="BEAM is tested with vLLM 0.32 and 0.33; report this build",
    )


def embed(scheduler: Any, vllm_config: Any, config: EmbeddedConfig) -> Embedded:
    """Table, view, controller and gate. Raises BeamError where one cannot be had."""
    from vllm.v1.request import Request

    from beam_runtime.control.controller import Controller
    from beam_runtime.control.resources import check_gpus, open_clocks, served_clocks
    from beam_runtime.table.idle_power import with_idle_power
    from beam_runtime.table.smoothing import smoothed
    from beam_runtime.table.step_cost import StepCost

    missing = vllm_features.missing_on(scheduler)
    if missing:
        raise _misfit(missing)
    _refuse(vllm_features.unsupported_on(scheduler))
    table = load_table(config, vllm_config)
    check_gpus(table, config.gpus)
    actuator, clocks = open_clocks(config.gpus, table)
    offered = () if actuator is None else actuator.supported_clocks_mhz()
    cost = smoothed(StepCost.from_table(table, served_clocks(table.clocks_mhz, offered)))
    cost = with_idle_power(cost, config.idle_power_w)
    core_class = _engine_core_class()
    features = vllm_features.features(Request, core_class)
    limits = engine_limits(vllm_config, scheduler, table)
    view = SchedulerView(scheduler, limits, PipelineTimes(limits.pp, limits.transfer_ms))
    log, unlogged = _open_log(config.log)
    embedded = Embedded(
        view,
        cost,
        features,
        policy=config.policy,
        slo=config.slo,
        slo_of=slo_of(config, lambda what: _misunderstood(embedded, what)),
        class_of=partial(class_of, config),
        now_ms=_monotonic_ms,
        wattmeter=open_wattmeter(config.gpus),
        log=log,
        about=_about(table, config),
    )
    embedded.without_log(unlogged)
    controller = Controller(
        cost,
        limits,
        actuator=actuator,
        slos={"default": config.slo, **config.classes},
        kv_blocks=view.free_blocks,
        log=log,
        # Whoever only looks on locks nothing, whatever it could.
        observing=config.policy is EmbeddedPolicy.OBSERVE,
        compose_with=embedded.compose_with,
        follows=Follows.STEPS,
        now_ms=_monotonic_ms,
    )
    controller.clocks = clocks
    embedded.connect(controller)
    try:
        controller.__enter__()
        _serve_metrics(embedded, config)
        if core_class is not None:
            add_utilities(core_class)
            if features.pollable:
                install(core_class)
        last_words_on(signal.SIGTERM, embedded)
    except BaseException:  # no thread, lock or port stays behind
        embedded.close()
        raise
    _LOG.warning(
        "BEAM %ss this engine: pp %d, %s; %s",
        config.policy, limits.pp, config.table, clocks,
    )  # fmt: skip
    return embedded


def _misunderstood(embedded: Embedded, what: str) -> None:
    """A request gets the default SLO in the place of its own: a client's slip, told once."""
    embedded.tally.misunderstood += 1
    if embedded.tally.misunderstood == 1:
        _LOG.warning(
            "a request asks for %s: it gets the default SLO; beam_misunderstood_slos_total counts "
            "them",
            what,
        )


def _open_log(path: Path | None) -> "tuple[DecisionLog | None, str]":
    """The decision log, or why there is none although there should be."""
    from beam_runtime.control.decision_log import DecisionLog

    try:
        return (None if path is None else DecisionLog(path)), ""
    except BeamError as error:  # nobody's service depends on being written down
        _LOG.warning("%s", error)
        return None, error.message


def _about(table: "PerfTable", config: EmbeddedConfig) -> dict[str, str]:
    """What serves here."""
    import vllm

    try:
        build = version("beamprof")
    except PackageNotFoundError:
        build = ""
    return {
        "version": build,
        "vllm": vllm.__version__,
        "table": config.table.name if config.table else "",
        "model": table.model,
        "device": table.metadata.get("device", ""),
    }


def _serve_metrics(embedded: Embedded, config: EmbeddedConfig) -> None:
    if config.metrics_port is None:
        return
    try:
        server = ControlServer(
            Control(embedded), config.metrics_port, config.metrics_address, config.read_token()
        )
    except BeamError as error:  # nor on being watched
        _LOG.warning("%s", error)
        return
    server.start()
    embedded.at_close(server.shutdown)
    embedded.at_close(server.server_close)


def _engine_core_class() -> type | None:
    try:
        from vllm.v1.engine.core import EngineCore
    except ImportError:
        return None
    found: type = EngineCore
    return found


def last_words_on(number: signal.Signals, embedded: Embedded) -> None:
    """Have the decision log ended when this signal comes, before vLLM's own handler runs.

    With no time to drain, vLLM kills its engine process at once after SIGTERM: shutdown() is
    never reached. Where vLLM has no handler of its own, none is added.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    theirs = signal.getsignal(number)
    if not callable(theirs):
        return

    def speak(received: int, frame: FrameType | None) -> None:
        embedded.last_words(signal.Signals(received).name)
        theirs(received, frame)

    signal.signal(number, speak)


def _monotonic_ms() -> float:
    return time.monotonic() * 1e3
