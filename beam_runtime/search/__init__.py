"""From a state to the cheapest knobs that keep its SLOs, and the reasons."""

from beam_runtime.search.search import Policy, Search

__all__ = ["Policy", "Search"]
