"""BEAM's online half: load a perf-energy table, predict what a step costs, steer an engine.

Names resolve on first use, so that ``import beam_runtime`` loads nothing outside
the standard library and costs a serving engine next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_runtime.control.controller import Controller
    from beam_runtime.control.decision_log import DecisionLog, read_log
    from beam_runtime.control.orders import EngineAdapter, Orders
    from beam_runtime.control.status import Status
    from beam_runtime.control.steering_rules import SteeringRules
    from beam_runtime.errors import BeamError, ClockError, CoverageError, TableError
    from beam_runtime.search.explain import explain
    from beam_runtime.search.policy import Policy
    from beam_runtime.search.search import Search
    from beam_runtime.table.perf_table import PerfTable
    from beam_runtime.table.step_cost import StepCost, StepForecast
    from beam_runtime.types import (
        Decision,
        EngineLimits,
        Follows,
        Forecast,
        Knobs,
        Origin,
        RequestState,
        Slo,
        Snapshot,
        Source,
        StepShape,
    )

_HOME = {
    "Controller": "control.controller",
    "Status": "control.status",
    "SteeringRules": "control.steering_rules",
    "EngineAdapter": "control.orders",
    "Orders": "control.orders",
    "Search": "search.search",
    "Policy": "search.policy",
    "DecisionLog": "control.decision_log",
    "read_log": "control.decision_log",
    "explain": "search.explain",
    "Decision": "types",
    "EngineLimits": "types",
    "Follows": "types",
    "Forecast": "types",
    "Knobs": "types",
    "RequestState": "types",
    "Slo": "types",
    "Snapshot": "types",
    "BeamError": "errors",
    "ClockError": "errors",
    "CoverageError": "errors",
    "TableError": "errors",
    "Origin": "types",
    "Source": "types",
    "StepShape": "types",
    "PerfTable": "table",
    "StepCost": "table",
    "StepForecast": "table",
}

__all__ = [  # noqa: RUF022 - in the order a reader meets them
    "Controller",
    "EngineLimits",
    "Slo",
    "Orders",
    "Knobs",
    "Follows",
    "Status",
    "SteeringRules",
    "EngineAdapter",
    "Search",
    "Policy",
    "Snapshot",
    "RequestState",
    "Decision",
    "Forecast",
    "explain",
    "DecisionLog",
    "read_log",
    "PerfTable",
    "StepCost",
    "StepForecast",
    "StepShape",
    "Origin",
    "Source",
    "BeamError",
    "TableError",
    "CoverageError",
    "ClockError",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'beam_runtime' has no attribute {name!r}")
    return getattr(import_module(f"beam_runtime.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
