"""BEAM's numbers in Prometheus' text format, version 0.0.4.

Counters of requests carry the SLO class that the request named. A number that is not known, or
not finite, is left out.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from beam_runtime.engines.vllm.tally import ClassTally, Histogram, Tally

# name, type, help, where in the status
_GAUGES = (
    ("beam_steering", "gauge", "1 while BEAM steers", ("steering",)),
    ("beam_clock_mhz", "gauge", "clock asked for", ("knobs", "clock_mhz")),
    ("beam_chunk_tokens", "gauge", "token budget of a step", ("knobs", "chunk_tokens")),
    ("beam_microbatches", "gauge", "groups of decodes", ("knobs", "microbatches")),
    ("beam_pace_ms", "gauge", "longest hold of a ready batch", ("knobs", "pace_ms")),
    ("beam_slo_ttft_ms", "gauge", "default TTFT SLO", ("slo", "ttft_ms")),
    ("beam_slo_token_ms", "gauge", "what the default SLO leaves for a token", ("slo_token_ms",)),
    ("beam_prefill_scale", "gauge", "measured over predicted", ("correction", "prefill_scale")),
    ("beam_decode_scale", "gauge", "measured over predicted", ("correction", "decode_scale")),
    ("beam_patience_slos", "gauge", "TTFT SLOs a prompt waits for streams at most",
     ("correction", "patience_slos")),
    ("beam_requests", "gauge", "requests in the engine", ("requests",)),
    ("beam_decisions_total", "counter", "decisions made", ("counts", "decisions")),
    ("beam_late_decisions_total", "counter", "dropped as late", ("counts", "late_decisions")),
    ("beam_decision_ms_sum", "counter", "time of all searches", ("counts", "search_ms")),
    ("beam_decision_count", "counter", "searches done, late ones too", ("searches",)),
    ("beam_failed_searches_total", "counter", "searches failed", ("counts", "failed_searches")),
    ("beam_clock_failures_total", "counter", "clocks refused", ("counts", "clock_failures")),
    ("beam_fallbacks_total", "counter", "times BEAM stopped steering", ("counts", "falls")),
    ("beam_log_failed", "gauge", "1 where the decision log is not written any more",
     ("log", "failed")),
    ("beam_steps_total", "counter", "engine steps", ("tally", "steps")),
    ("beam_holds_total", "counter", "engine rounds held back", ("tally", "holds")),
    ("beam_aborts_total", "counter", "requests aborted", ("tally", "aborts")),
    ("beam_preemptions_total", "counter", "requests preempted", ("tally", "preemptions")),
    ("beam_passed_over_total", "counter", "prompts that moved only without BEAM",
     ("tally", "passed_over")),
    ("beam_misunderstood_slos_total", "counter", "requests whose own SLO or class is none",
     ("tally", "misunderstood")),
    ("beam_ttft_compared_count", "counter", "first tokens that had a forecast",
     ("tally", "ttfts")),
    ("beam_ttft_compared_ms_sum", "counter", "their TTFT, summed", ("tally", "ttft_ms")),
    ("beam_ttft_predicted_ms_sum", "counter", "the forecasts, summed",
     ("tally", "predicted_ttft_ms")),
    ("beam_longest_gap_compared_count", "counter", "forecasts that were seen to their horizon",
     ("tally", "longest_gaps")),
    ("beam_longest_gap_compared_ms_sum", "counter",
     "the longest gap between tokens that came in each, summed", ("tally", "longest_gap_ms")),
    ("beam_longest_gap_predicted_ms_sum", "counter", "the longest that each predicted, summed",
     ("tally", "predicted_longest_gap_ms")),
    ("beam_active_energy_j_total", "counter",
     "energy of all passes at the clock in force, as the table has it",
     ("tally", "active_energy_j")),
    ("beam_modelled_energy_j_total", "counter",
     "passes and waiting at the clock that BEAM sets, or would set, as the table has it",
     ("tally", "beam_energy_j")),
    ("beam_own_energy_j_total", "counter", "the same steps at vLLM's own clock",
     ("tally", "own_energy_j")),
    ("beam_gpu_energy_j_total", "counter", "energy of the replica's GPUs, measured",
     ("measured", "energy_j")),
    ("beam_gpu_power_w", "gauge", "power of the replica's GPUs, measured since the last scrape",
     ("measured", "power_w")),
)  # fmt: skip

# name, help, attribute of a class's tally
_BY_CLASS = (
    ("beam_requests_total", "requests that came in", "requests"),
    ("beam_prompt_tokens_total", "prompt tokens of requests with a first token", "prompt_tokens"),
    ("beam_generated_tokens_total", "tokens given out", "generated_tokens"),
    ("beam_first_tokens_total", "first tokens", "first_tokens"),
    ("beam_late_first_tokens_total", "of these, after their TTFT SLO", "late_first_tokens"),
    ("beam_gaps_total", "gaps between two tokens of a request", "gaps"),
    ("beam_late_gaps_total", "of these, over the TBT SLO", "late_gaps"),
    ("beam_completions_total", "requests done", "completions"),
    ("beam_late_completions_total", "of these, with a promise broken", "late_completions"),
    ("beam_slow_completions_total", "of these, with a mean gap over the TBT SLO",
     "slow_completions"),
)  # fmt: skip
_HISTOGRAMS = (
    ("beam_ttft_ms", "time to first token", "ttft_ms"),
    ("beam_gap_ms", "gaps between two tokens of a request", "gap_ms"),
    ("beam_tpot_ms", "mean gap of a completion", "tpot_ms"),
    ("beam_request_energy_j", "active energy of a completion, as the table has it", "energy_j"),
)


def exposition(status: Mapping[str, Any], tally: Tally, about: Mapping[str, str]) -> Iterator[str]:
    """All metrics, a family at a time.

    Args:
        status: as Control.status() has it.
        tally: the engine's counters.
        about: labels of ``beam_info``.
    """
    yield from _family("beam_info", "gauge", "what serves here", [(_labels(about), 1.0)])
    reason = status["not_steering"]
    yield from _family(
        "beam_not_steering", "gauge", "1, and why BEAM does not steer",
        [(_labels({"reason": reason}), 1.0)] if reason else [],
    )  # fmt: skip
    for name, kind, text, path in _GAUGES:
        value: Any = status
        for key in path:
            value = value[key]
        if value is not None:
            yield from _family(name, kind, text, [("", float(value))])
    classes = list(tally.classes.items())
    for name, text, attribute in _BY_CLASS:
        values = [(_class(one), float(getattr(of, attribute))) for one, of in classes]
        yield from _family(name, "counter", text, values)
    for name, text, attribute in _HISTOGRAMS:
        yield from _histograms(name, text, attribute, classes)


def _family(name: str, kind: str, text: str, values: list[tuple[str, float]]) -> Iterator[str]:
    finite = [(labels, value) for labels, value in values if math.isfinite(value)]
    if not finite:
        return
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in finite:
        yield f"{name}{labels} {value:.12g}\n"


def _histograms(
    name: str, text: str, attribute: str, classes: list[tuple[str, ClassTally]]
) -> Iterator[str]:
    if not classes:
        return
    yield f"# HELP {name} {text}\n# TYPE {name} histogram\n"
    for slo_class, tally in classes:
        histogram: Histogram = getattr(tally, attribute)
        # Read once: the engine's thread goes on counting.
        counts, total = list(histogram.counts), histogram.total
        below = 0
        for bound, count in zip((*histogram.bounds, math.inf), counts, strict=True):
            below += count
            le = "+Inf" if math.isinf(bound) else f"{bound:g}"
            yield f"{name}_bucket{_labels({'slo_class': slo_class, 'le': le})} {below}\n"
        yield f"{name}_sum{_class(slo_class)} {total:.12g}\n"
        yield f"{name}_count{_class(slo_class)} {below}\n"


def _class(slo_class: str) -> str:
    return _labels({"slo_class": slo_class})


def _labels(values: Mapping[str, str]) -> str:
    quoted = ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())
    return "{" + quoted + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
