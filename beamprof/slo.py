"""SLOs as people write them: `1s` to the first token, then `200ms`, `200ms@99%` between tokens,
a mean time per token, or a time for the whole request.
"""

from collections.abc import Sequence

from beam_runtime.types import Slo, StreamKind
from beamprof.errors import SweepError
from beamprof.units import format_duration, parse_duration_s

_KINDS = {"tbt": StreamKind.GAP, "itl": StreamKind.GAP, "tpot": StreamKind.TPOT,
          "e2e": StreamKind.E2E}  # fmt: skip


def slo_from_flags(
    ttft: str, tbt: str | None = None, tpot: str | None = None, e2e: str | None = None
) -> Slo:
    """The SLO of --slo-ttft and at most one of --slo-tbt, --slo-tpot, --slo-e2e.

    Raises:
        SweepError: two kinds of streaming at once, or text that is none.
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
    return _slo(ttft, kind, text, "--slo-ttft", f"--slo-{kind}")


def parse_slo(value: object, name: str) -> Slo:
    """`1s/200ms`, `1s/200ms@99%`, `1s/tpot=100ms` or `1s/e2e=30s`.

    Raises:
        SweepError: anything else.
    """
    ttft, slash, rest = value.partition("/") if isinstance(value, str) else ("", "", "")
    kind, equals, text = rest.partition("=")
    if not equals:
        kind, text = "tbt", rest
    kind = kind.strip().lower()
    if not slash or kind not in _KINDS:
        raise SweepError(
            f"{name}: expected TTFT/TBT, TTFT/tpot=TIME or TTFT/e2e=TIME, found {value!r}",
            hint="for example 1s/200ms, 1s/200ms@99% or 1s/tpot=100ms",
        )
    return _slo(ttft.strip(), kind, text.strip(), f"{name}: TTFT", f"{name}: {kind.upper()}")


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
        return f"{first}/{slo.kind}={target}"
    return f"{first}/{target}" + (f"@{100 * slo.tbt_share:g}%" if slo.tbt_share < 1.0 else "")


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
