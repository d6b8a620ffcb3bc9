"""vLLM's own metrics, as Prometheus text: from a live server or a saved file.

Knows the names of vLLM's histograms and when counting began. Does not know how requests were
spread over that time: a counter has no memory.
"""

import re
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from beamprof.errors import ImportFormatError
from beamprof.file_kind import kind_of
from beamprof.files import is_stream, read_twice

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+([^\s]+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'\b(\w+)="((?:[^"\\]|\\.)*)"')
_MOST_BYTES = 50_000_000
_TIMEOUT_S = 10.0
PROMPTS, OUTPUTS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
TTFT = "vllm:time_to_first_token_seconds"
# Its name since 0.11, and before.
TBT = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
_HINT = "save one from the server: curl http://HOST:8000/metrics > metrics.txt"


@dataclass(frozen=True, slots=True)
class Histogram:
    """A Prometheus histogram, all engines together.

    Attributes:
        edges: upper edges of the buckets, ascending, the last one infinite.
        counts: in each bucket, not cumulated.
        total: sum of the values.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def count(self) -> float:
        """How many values."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Of all values; 0 where there are none."""
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a vLLM server says of its load.

    Attributes:
        model: its name there; empty where no line says it.
        engines: how many engines (data-parallel replicas) share the load.
        seconds: from the beginning of counting to the scrape; None = not to be told.
        prompts, outputs: lengths of finished requests, in tokens.
        ttft_s, tbt_s: as the server observed them; None where it has none.
    """

    model: str
    engines: int
    seconds: float | None
    prompts: Histogram
    outputs: Histogram
    ttft_s: Histogram | None
    tbt_s: Histogram | None


def read_scrape(source: str) -> Scrape:
    """A live server's /metrics (http://...), a file that holds one, or - for standard input.

    Raises:
        ImportFormatError: nothing answers, it is no Prometheus text, or it is not vLLM's, or the
            server has finished no request yet.
    """
    if re.match(r"https?://", source):
        return parse_scrape(_fetched(source), source, time.time())
    path = Path(source)
    kind = kind_of(path) if source != "-" and not is_stream(path) else "text"
    if kind not in ("text", "JSON", "CSV"):
        words = f"there is no file {path}" if not kind else f"{path} is {kind}"
        raise ImportFormatError(words, hint=_HINT)
    with read_twice(path) as file:
        try:
            if file.stat().st_size > _MOST_BYTES:
                raise ImportFormatError(f"{source} is too large for metrics", hint=_HINT)
            text, at = file.read_text("utf-8"), file.stat().st_mtime
        except (OSError, UnicodeDecodeError) as error:
            raise ImportFormatError(
                f"{source} cannot be read as metrics", cause=str(error), hint=_HINT
            ) from None
    return parse_scrape(text, "standard input" if source == "-" else source, at)


def _fetched(url: str) -> str:
    """The text behind a URL; a server's root is taken for its /metrics."""
    if url.count("/") == 2 or url.endswith(":8000/"):
        url = url.rstrip("/") + "/metrics"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            content: bytes = answer.read(_MOST_BYTES)
        return content.decode("utf-8")
    except (OSError, ValueError) as error:  # urllib's own are OSErrors
        raise ImportFormatError(
            f"no metrics at {url}", cause=_reason(error), hint="vllm serve has them at /metrics"
        ) from None


def _reason(error: Exception) -> str:
    """In words: urllib wraps what the system said."""
    inner = getattr(error, "reason", error)
    return str(getattr(inner, "strerror", None) or error)


def parse_scrape(text: str, source: str, now_s: float) -> Scrape:
    """Read Prometheus text.

    Args:
        text: the whole of it.
        source: for messages.
        now_s: when it was made, seconds since 1970.

    Raises:
        ImportFormatError: as read_scrape.
    """
    lines = [found for line in text.splitlines() if (found := _sample(line)) is not None]
    if not lines:
        raise ImportFormatError(f"{source} is no Prometheus text", hint=_HINT)
    prompts, outputs = _histogram(lines, PROMPTS), _histogram(lines, OUTPUTS)
    if prompts is None or outputs is None:
        missing = PROMPTS if prompts is None else OUTPUTS
        names = sorted({name for name, _, _ in lines})
        vllms = any(name.startswith("vllm:") for name in names)
        raise ImportFormatError(
            f"{source} has no {missing}"
            + (": it is a part of vLLM's metrics" if vllms else ": it is not vLLM's"),
            cause=f"found {', '.join(names[:5])}",
            hint=f"the histograms of lengths are needed, whole; {_HINT}" if vllms else _HINT,
        )
    if not prompts.count or not outputs.count or prompts.total < 1 or outputs.total < 1:
        raise ImportFormatError(
            f"{source}: the server has finished no request yet",
            hint="scrape it under load, or say --rate, --input-tokens and --output-tokens",
        )
    mine = [labels for name, labels, _ in lines if name == f"{PROMPTS}_count"]
    return Scrape(
        model=next((one["model_name"] for one in mine if one.get("model_name")), ""),
        engines=max(1, len({one.get("engine", "") for one in mine})),
        seconds=_seconds(lines, now_s),
        prompts=prompts,
        outputs=outputs,
        ttft_s=_histogram(lines, TTFT),
        tbt_s=next((one for name in TBT if (one := _histogram(lines, name)) is not None), None),
    )


_Samples = list[tuple[str, Mapping[str, str], float]]


def _sample(line: str) -> tuple[str, Mapping[str, str], float] | None:
    """Name, labels, value; None for comments and what is no sample."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    try:
        value = float(found[3])
    except ValueError:
        return None
    return found[1], dict(_LABEL.findall(found[2] or "")), value


def _histogram(samples: _Samples, name: str) -> Histogram | None:
    """All engines' buckets together; None where there is no such histogram, or a broken one."""
    cumulated: dict[float, float] = {}
    total = 0.0
    for found, labels, value in samples:
        if not 0 <= value < float("inf"):
            continue
        if found == f"{name}_bucket":
            try:
                edge = float(labels.get("le", ""))
            except ValueError:
                continue
            cumulated[edge] = cumulated.get(edge, 0.0) + value
        elif found == f"{name}_sum":
            total += value
    if not cumulated:
        return None
    edges = tuple(sorted(cumulated))
    counts, below = [], 0.0
    for edge in edges:
        counts.append(max(0.0, cumulated[edge] - below))
        below = max(below, cumulated[edge])
    return Histogram(edges, tuple(counts), total)


def _seconds(samples: _Samples, now_s: float) -> float | None:
    """Since counting began: the histogram's own word, else the process's start."""
    for wanted in (f"{PROMPTS}_created", "process_start_time_seconds"):
        began = [value for name, _, value in samples if name == wanted]
        if began and 1.0 <= now_s - min(began) < 3.2e8:  # ten years
            return now_s - min(began)
    return None
