"""From a state to the cheapest knobs that keep its SLOs, and the reasons.

``Search`` and ``Policy`` resolve on first use: who only wants a stance needs no compiler.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_runtime.search.policy import Policy
    from beam_runtime.search.search import Search

__all__ = ["Policy", "Search"]


def __getattr__(name: str) -> Any:
    if name == "Policy":
        from beam_runtime.search.policy import Policy

        return Policy
    if name == "Search":
        from beam_runtime.search.search import Search

        return Search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
