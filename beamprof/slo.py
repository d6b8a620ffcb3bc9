"""SLOs as people write them: `1s` to the first token, then `200ms`, `200ms@99%` between tokens,
a mean time per token, or a time for the whole request; behind it what may limit saving: `8tok/s` at
least, `1.5x` as slow at most.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from beam_runtime.types import Slo, StreamKind
from beamprof.errors import SweepError
from beamprof.units import format_duration, parse_duration_s

_KINDS = {"tbt": StreamKind.GAP, "itl": StreamKind.GAP, "tpot": StreamKind.TPOT,
          "e2e": StreamKind.E2E}  # fmt: skip
_TOKENS = "tok/s"


def slo_from_flags(
    ttft: str,
    tbt: str | None = None,
    tpot: str | None = None,
    e2e: str | None = None,
    least_tokens_per_s: float | None = None,
    max_slowdown: float | None = None,
) -> Slo:
    """The SLO of --slo-ttft and at most one of --slo-tbt, --slo-tpot, --slo-e2e, and its limits.

    Raises:
        SweepError: two kinds of streaming at once, text that is none, or a limit that is none.
    """
    given = {"tbt": tbt, "tpot": tpot, "e2e": e2e}
    said = {kind: text for kind, text in given.items() if text is not None}
    if len(said) > 1:
        flags = " and ".join(f"--slo-{kind}" for kind in said)
        raise SweepError(
            f"an SLO promises one kind of streaming, found {flags}",
            hint="gap: --slo-tbt 200ms or 200ms@99%; mean per token: --slo-tpot; whole "
            "request: --slo-e2e",
        )
    kind, text = next(iter(said.items()), ("tbt", "200ms"))
    slo = _slo(ttft, kind, text, "--slo-ttft", f"--slo-{kind}")
    floor, slowdown = least_tokens_per_s, max_slowdown
    return replace(
        slo,
        least_tokens_per_s=None if floor is None else _floor(floor, "--least-tokens-per-s"),
        max_slowdown=None if slowdown is None else _slowdown(slowdown, "--max-slowdown"),
    )


def parse_slo(value: object, name: str) -> Slo:
    """`1s/200ms`, `1s/200ms@99%`, `1s/tpot=100ms` or `1s/e2e=30s`; `1s/200ms/8tok/s/1.5x`.

    Raises:
        SweepError: anything else.
    """
    ttft, slash, rest = value.partition("/") if isinstance(value, str) else ("", "", "")
    rest, limits = _limits(rest, name)
    kind, equals, text = rest.partition("=")
    if not equals:
        kind, text = "tbt", rest
    kind = kind.strip().lower()
    if not slash or kind not in _KINDS:
        raise SweepError(
            f"{name}: expected TTFT/TBT, TTFT/tpot=TIME or TTFT/e2e=TIME, found {value!r}",
            hint="for example 1s/200ms, 1s/200ms@99% or 1s/tpot=100ms",
        )
    slo = _slo(ttft.strip(), kind, text.strip(), f"{name}: TTFT", f"{name}: {kind.upper()}")
    floor, slowdown = limits.get("least_tokens_per_s"), limits.get("max_slowdown")
    return slo.revised(least_tokens_per_s=floor, max_slowdown=slowdown)


def parse_classes(values: Sequence[str], flag: str) -> tuple[tuple[str, Slo], ...]:
    """`batch=10s/500ms`, one for each class.

    Raises:
        SweepError: no name, no SLO, or a class twice.
    """
    found: dict[str, Slo] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name.strip() or "/" in name:
            raise SweepError(
                f"{flag}: expected NAME=TTFT/TBT, found {value!r}",
                hint=f"for example {flag} batch=10s/500ms",
            )
        if name.strip() in found:
            raise SweepError(f"{flag}: class {name.strip()!r} has two SLOs", hint="give it one")
        found[name.strip()] = parse_slo(text, f"{flag} {name.strip()}")
    return tuple(found.items())


def classes_text(classes: Sequence[tuple[str, Slo]]) -> str:
    """As parse_classes reads each of them, with commas."""
    return ",".join(f"{name}={slo_text(slo)}" for name, slo in classes)


def slo_of(kind: StreamKind, ttft_ms: float, stream_ms: float, share: float = 1.0) -> Slo:
    """An SLO by its kind; ``share`` is of gaps and counts for those only."""
    if kind is StreamKind.TPOT:
        return Slo(ttft_ms, tpot_ms=stream_ms)
    if kind is StreamKind.E2E:
        return Slo(ttft_ms, e2e_ms=stream_ms)
    return Slo(ttft_ms, stream_ms, tbt_share=share)


def slo_text(slo: Slo) -> str:
    """As parse_slo reads it."""
    first, target = _exact(slo.ttft_ms), _exact(slo.stream_ms)
    if slo.tbt_ms is None:
        return f"{first}/{slo.kind}={target}{_limit_text(slo)}"
    share = f"@{100 * slo.tbt_share:g}%" if slo.tbt_share < 1.0 else ""
    return f"{first}/{target}{share}{_limit_text(slo)}"


def _limit_text(slo: Slo) -> str:
    floor = "" if slo.least_tokens_per_s is None else f"/{slo.least_tokens_per_s:g}{_TOKENS}"
    return floor + ("" if slo.max_slowdown is None else f"/{slo.max_slowdown:g}x")


def limit_words(slo: Slo) -> str:
    """Its limits on saving: `at least 8 tokens/s, at most 1.5 times as slow`; empty without."""
    floor, slowdown = slo.least_tokens_per_s, slo.max_slowdown
    words = [
        "" if floor is None else f"at least {floor:g} tokens/s",
        "" if slowdown is None else f"at most {slowdown:g} times as slow",
    ]
    return ", ".join(filter(None, words))


def _exact(ms: float) -> str:
    return f"{ms / 1e3:.12g}s" if ms >= 1e3 else f"{ms:.12g}ms"


def stream_words(slo: Slo) -> str:
    """The streaming part: `TBT 200 ms`, `TBT 200 ms for 99 % of gaps`, `TPOT 100 ms`."""
    target = format_duration(slo.stream_ms / 1e3)
    if slo.tbt_ms is None:
        return f"{slo.kind.upper()} {target}"
    share = f" for {100 * slo.tbt_share:g} % of gaps" if slo.tbt_share < 1.0 else ""
    return f"TBT {target}{share}"


def _slo(ttft: str, kind: str, text: str, ttft_name: str, name: str) -> Slo:
    share = 1.0
    time, at, percent = text.partition("@")
    if at:
        share = _share(percent, kind, name, text)
    stream_ms = parse_duration_s(time.strip(), name) * 1e3
    return slo_of(_KINDS[kind], parse_duration_s(ttft, ttft_name) * 1e3, stream_ms, share)


def _limits(rest: str, name: str) -> tuple[str, dict[str, float]]:
    """What is promised of the stream, and the limits behind it."""
    stream, *parts = rest.replace(_TOKENS, "tok").split("/")
    limits: dict[str, float] = {}
    for part in (one.strip() for one in parts):
        if part.endswith("tok"):
            key, limit = "least_tokens_per_s", _floor(part.removesuffix("tok"), name)
        elif part.endswith("x"):
            key, limit = "max_slowdown", _slowdown(part.removesuffix("x"), name)
        else:
            raise SweepError(
                f"{name}: expected a limit such as 8tok/s or 1.5x, found {part!r}",
                hint="for example 1s/200ms/8tok/s/1.5x",
            )
        if key in limits:
            raise SweepError(f"{name}: a limit is given twice", cause=f"found {rest!r}")
        limits[key] = limit
    return stream, limits


def _floor(value: float | str, name: str) -> float:
    number = _number(value)
    if not 0.0 < number < math.inf:
        raise SweepError(
            f"{name}: expected tokens per second above 0, found {value!r}",
            hint="8: no stream gets slower than eight tokens a second for the sake of energy",
        )
    return number


def _slowdown(value: float | str, name: str) -> float:
    number = _number(value)
    if not 1.0 <= number < math.inf:
        raise SweepError(
            f"{name}: expected a factor of 1 or more, found {value!r}",
            hint="1.5: at most one and a half times as long as at the fastest setting",
        )
    return number


def _number(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def _share(percent: str, kind: str, name: str, text: str) -> float:
    if _KINDS[kind] is not StreamKind.GAP:
        raise SweepError(f"{name}: a share is of gaps between tokens, found {text!r}")
    number = percent.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not (percent.strip().endswith("%") and 0.0 < share <= 1.0):
        raise SweepError(
            f"{name}: expected TIME@SHARE%, found {text!r}", hint="for example 200ms@99%"
        )
    return share
