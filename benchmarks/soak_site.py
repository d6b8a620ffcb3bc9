"""What both soaks run on: a shipped table, an engine and its promise; what memory they take."""

import resource
from pathlib import Path

from beam_runtime.control.fallback import FallbackRules
from beam_runtime.control.steering_rules import SteeringRules
from beam_runtime.types import EngineLimits, Slo

TABLE = Path("tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet")
SLO = Slo(1000.0, 200.0)
LIMITS = EngineLimits(pp=1, max_num_seqs=256, max_model_len=8192, host_gap_ms=2.0)
# Falls are part of it: the controller is to come back from each.
RULES = SteeringRules(
    stall_ms=1_000.0,
    fallback=FallbackRules(pause_ms=500.0, failures=1 << 30, forgiven_ms=5_000.0),
)


def rss_mb() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)
