"""vLLM's own metrics, as Prometheus text: from a live server or a saved file.

Knows the names of vLLM's histograms and when counting began. Does not know how requests were
spread over that time: a counter has no memory.
"""

import re
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from beamprof.errors import ImportFormatError
from beamprof.file_kind import kind_of
from beamprof.files import is_stream, read_twice
from beamprof.models.registry import registry_name

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+([^\s]+)(?:\s+-?[\d.]+)?")
_EXEMPLAR = " # {"  # what OpenMetrics may write behind a value
_LABEL = re.compile(r'\b(\w+)="((?:[^"\\]|\\.)*)"')
_HOST = re.compile(r"[\w.-]+:\d+(?:/\S*)?")
_MOST_BYTES = 50_000_000
_TIMEOUT_S = 10.0
PROMPTS, OUTPUTS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
# Counted in tokens; the name of before 0.10 last.
_CACHE = (
    ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
    ("vllm:gpu_prefix_cache_hits_total", "vllm:gpu_prefix_cache_queries_total"),
)
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
        engines: how many engines (data-parallel replicas, servers) share the load.
        seconds: from the beginning of counting to the scrape; None = not to be told.
        prompts, outputs: lengths of finished requests, in tokens.
        ttft_s, tbt_s: as the server observed them; None where it has none.
        cached_share: of prompt tokens that its prefix cache had; 0 where it does not say.
        until: when counting ended, in words.
    """

    model: str
    engines: int
    seconds: float | None
    prompts: Histogram
    outputs: Histogram
    ttft_s: Histogram | None
    tbt_s: Histogram | None
    cached_share: float = 0.0
    until: str = "now"


def read_scrape(source: str, model: str | None = None) -> Scrape:
    """A live server's /metrics (http://...), a file that holds one, or - for standard input.

    Args:
        source: which of them.
        model: whose requests, where servers of several are in it.

    Raises:
        ImportFormatError: nothing answers, it is no Prometheus text, or it is not vLLM's, the
            server has finished no request yet, or it is of several models or scrapes.
    """
    if re.match(r"https?://", source):
        return parse_scrape(_fetched(source), source, time.time(), model)
    path = Path(source)
    kind = kind_of(path) if source != "-" and not is_stream(path) else "text"
    if kind not in ("text", "JSON", "CSV"):
        words = f"there is no file {path}" if not kind else f"{path} is {kind}"
        meant = not kind and _HOST.fullmatch(source)
        raise ImportFormatError(
            words, hint=f"a server is asked by its address: http://{source}" if meant else _HINT
        )
    with read_twice(path) as file:
        try:
            if file.stat().st_size > _MOST_BYTES:
                raise ImportFormatError(f"{source} is too large for metrics", hint=_HINT)
            text, at = file.read_text("utf-8"), file.stat().st_mtime
        except (OSError, UnicodeDecodeError) as error:
            raise ImportFormatError(
                f"{source} cannot be read as metrics", cause=str(error), hint=_HINT
            ) from None
    if source == "-":
        return parse_scrape(text, "standard input", at, model)
    return replace(parse_scrape(text, source, at, model), until="the file was written")


def _fetched(url: str) -> str:
    """The text behind a URL; a server's root is taken for its /metrics."""
    if url.partition("://")[2].rstrip("/").count("/") == 0:
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


def parse_scrape(text: str, source: str, now_s: float, model: str | None = None) -> Scrape:
    """Read Prometheus text.

    Args:
        text: the whole of it.
        source: for messages.
        now_s: when it was made, seconds since 1970.
        model: as in read_scrape.

    Raises:
        ImportFormatError: as read_scrape.
    """
    lines = [found for line in text.splitlines() if (found := _sample(line)) is not None]
    if not lines:
        raise ImportFormatError(f"{source} is no Prometheus text", hint=_HINT)
    served, lines = _of_one_model(lines, source, model)
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
    for name, lengths in ((PROMPTS, prompts), (OUTPUTS, outputs)):
        if not lengths.count:
            raise ImportFormatError(
                f"{source}: the server has finished no request yet",
                hint="scrape it under load, or say --rate, --input-tokens and --output-tokens",
            )
        if lengths.total < 1:
            raise ImportFormatError(f"{source}: {name}_sum is no number above 0", hint=_HINT)
    return Scrape(
        model=served,
        engines=_engines(lines, source),
        seconds=_seconds(lines, now_s),
        prompts=prompts,
        outputs=outputs,
        ttft_s=_histogram(lines, TTFT),
        tbt_s=next((one for name in TBT if (one := _histogram(lines, name)) is not None), None),
        cached_share=_cached_share(lines),
    )


_Samples = list[tuple[str, Mapping[str, str], float]]


def _of_one_model(samples: _Samples, source: str, model: str | None) -> tuple[str, _Samples]:
    """The name of the one model that is served, and its samples and those of no model.

    Raises:
        ImportFormatError: there are several, and it is not said which.
    """
    served = sorted({
        labels["model_name"]
        for name, labels, _ in samples
        if name == f"{PROMPTS}_count" and labels.get("model_name")
    })  # fmt: skip
    if len(served) < 2:
        return "".join(served), samples
    meant = [one for one in served if model is not None and _same(one, model)]
    if len(meant) != 1:
        raise ImportFormatError(
            f"{source} has the metrics of {len(served)} models",
            cause=f"found {', '.join(served)}",
            hint=f"advice is about one of them: --model {served[0]}",
        )
    others = {one for one in served if one != meant[0]}
    return meant[0], [one for one in samples if one[1].get("model_name") not in others]


def _same(served: str, model: str) -> bool:
    """Whether a name there and one that a user says are of one model."""
    known = registry_name(model)
    return served == model or (known is not None and registry_name(served) == known)


def _engines(samples: _Samples, source: str) -> int:
    """How many series of requests there are: one for each engine, whatever tells them apart.

    Raises:
        ImportFormatError: one of them stands there twice.
    """
    series = [sorted(labels.items()) for name, labels, _ in samples if name == f"{PROMPTS}_count"]
    twice = next((one for one in series if series.count(one) > 1), None)
    if twice is not None:
        shown = ",".join(f'{name}="{value}"' for name, value in twice)
        raise ImportFormatError(
            f"{source} holds more than one scrape",
            cause=f"{PROMPTS}_count{{{shown}}} stands there twice",
            hint="one scrape in a file; of several servers each its own",
        )
    return max(1, len(series))


def _cached_share(samples: _Samples) -> float:
    for hits, queries in _CACHE:
        had, asked = (
            sum(value for name, _, value in samples if name == wanted and 0 <= value < float("inf"))
            for wanted in (hits, queries)
        )
        if asked:
            return min(1.0, had / asked)
    return 0.0


def _sample(line: str) -> tuple[str, Mapping[str, str], float] | None:
    """Name, labels, value; None for comments and what is no sample."""
    found = _LINE.fullmatch(line.partition(_EXEMPLAR)[0].strip())
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
