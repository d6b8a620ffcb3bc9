"""A native ServeGen pool: per client, how often it asks and how long its texts are.

    chunk-<id>-trace.csv      window start (s), rate (requests/s), CV, Gamma|Weibull, shape, scale
    chunk-<id>-dataset.json   {block start (s): {input_tokens: "{length: probability, ...}", ...}}

The dictionaries are Python literals in strings: they are checked character by character before
they are parsed, and never evaluated. Only language pools are read: a multimodal one has no
input_tokens. ServeGen: arXiv 2505.09999, Apache-2.0.
"""

import ast
import csv
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beamprof.errors import ImportFormatError, TraceError
from beamprof.files import there_is

WINDOW_S = 600  # of every chunk's trace; ServeGen states rates for 10 minutes
FAMILIES = ("Gamma", "Weibull")
# What {12: 0.5, 13: 1e-05} needs; no name, call, string, operator or nesting can be spelt.
_LITERAL = re.compile(r"\{[0-9eE.:,+\-\s]*\}")
_MOST_LITERAL_CHARACTERS = 64 * 1024 * 1024
_LARGEST_WEIGHT = 1e100  # all of them together are still a number


@dataclass(frozen=True, slots=True)
class ClientWindow:
    """One client in one 10-minute window: its rate and the law of its inter-arrivals."""

    start_s: int
    rate_rps: float
    family: str
    shape: float
    scale_s: float


@dataclass(frozen=True, slots=True, eq=False)
class LengthLaw:
    """A distribution of lengths: ``tokens`` ascending, ``cumulative`` up to 1, same shape (n,)."""

    tokens: NDArray[np.int64]
    cumulative: NDArray[np.float64]

    def at(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Lengths by the inverse of the cumulative distribution; same shape as ``uniform``."""
        index = np.searchsorted(self.cumulative, uniform, side="right")
        return self.tokens[np.minimum(index, len(self.tokens) - 1)]

    @property
    def mean_tokens(self) -> float:
        """The expected length, with 0 counted as 1 as the sampler does."""
        return float(np.maximum(self.tokens, 1) @ np.diff(self.cumulative, prepend=0.0))


@dataclass(frozen=True, slots=True)
class LengthBlock:
    """The lengths of one client from ``start_s`` on."""

    start_s: int
    input_law: LengthLaw
    output_law: LengthLaw

    @property
    def empty(self) -> bool:
        """Whether it names no length, as the blocks of silent hours do."""
        return not len(self.input_law.tokens) or not len(self.output_law.tokens)


@dataclass(frozen=True, slots=True)
class Client:
    """One client: the windows of the span in which it asks at all, and their lengths.

    ``blocks`` is empty where the pool has no dataset for it.
    """

    client_id: int
    windows: tuple[ClientWindow, ...]
    blocks: tuple[LengthBlock, ...]

    def block_for(self, window: ClientWindow) -> LengthBlock | None:
        """The newest block at or before the window; None where there is none or it is empty."""
        older = [block for block in self.blocks if block.start_s <= window.start_s]
        newest = max(older, key=lambda block: block.start_s, default=None)
        return None if newest is None or newest.empty else newest


@dataclass(frozen=True, slots=True)
class Pool:
    """The clients, by ascending id, that are active in a span.

    ``sha256`` is of every chunk's trace and of the datasets of the active clients.
    """

    name: str
    sha256: str
    clients: tuple[Client, ...]


def read_pool(folder: Path, start_s: float, end_s: float) -> Pool:
    """The clients active in [start_s, end_s) of the pool's time axis.

    Raises:
        ImportFormatError: no pool, a broken file, an unsafe literal, a multimodal pool.
        TraceError: the span lies outside the pool's windows.
    """
    paths = dict(sorted(_chunks(folder)))
    digest = hashlib.sha256()
    clients = []
    covered: list[int] = []
    for client_id, path in paths.items():
        windows = _read_windows(path, digest)
        covered += (windows[0].start_s, windows[-1].start_s + WINDOW_S)
        active = tuple(
            window
            for window in windows
            if window.start_s + WINDOW_S > start_s and window.start_s < end_s and window.rate_rps
        )
        if active:
            dataset = path.with_name(f"chunk-{client_id}-dataset.json")
            clients.append(Client(client_id, active, _read_blocks(dataset, active, digest)))
    if end_s <= min(covered) or start_s >= max(covered):
        raise TraceError(
            f"{folder} covers {min(covered)} s to {max(covered)} s of its time axis, "
            f"asked for {start_s:g} s to {end_s:g} s",
            hint="choose another --day or --start",
        )
    name = "/".join(folder.resolve().parts[-2:])
    return Pool(name, digest.hexdigest(), tuple(clients))


def _chunks(folder: Path) -> Iterator[tuple[int, Path]]:
    is_folder = there_is(folder) and folder.is_dir()
    for path in folder.glob("chunk-*-trace.csv") if is_folder else ():
        match = re.fullmatch(r"chunk-(\d+)-trace\.csv", path.name)
        if match:
            yield int(match.group(1)), path
    if not is_folder or not any(folder.glob("chunk-*-trace.csv")):
        raise ImportFormatError(
            f"{folder} is no ServeGen pool",
            cause="it holds no chunk-<id>-trace.csv",
            hint="name a folder such as ServeGen's data/language/m-large",
        )


def _read_windows(path: Path, digest: Any) -> list[ClientWindow]:
    text = _read_text(path, digest)
    windows = []
    for line, text_of_line in enumerate(text.splitlines(), start=1):
        try:
            (cells,) = csv.reader([text_of_line])
            start, rate, _, family, shape, scale = cells
            window = ClientWindow(
                int(float(start)), float(rate), family.strip(), float(shape), float(scale)
            )
        except (ValueError, OverflowError, csv.Error) as error:
            raise ImportFormatError(
                f"{path}: line {line} is no window",
                cause=str(error),
                hint="expected: start_s, rate_rps, cv, Gamma or Weibull, shape, scale",
            ) from None
        _check_window(window, path, line)
        windows.append(window)
    if not windows:
        raise ImportFormatError(f"{path} is empty", hint="download the file again")
    if any(b.start_s - a.start_s < WINDOW_S for a, b in itertools.pairwise(windows)):
        raise ImportFormatError(
            f"{path}: windows must ascend in steps of {WINDOW_S} s", hint="download the file again"
        )
    return windows


def _check_window(window: ClientWindow, path: Path, line: int) -> None:
    if not math.isfinite(window.rate_rps) or window.rate_rps < 0:
        raise ImportFormatError(
            f"{path}: line {line}: a rate is a finite number of 0 or more",
            cause=f"found {window.rate_rps}",
        )
    if window.rate_rps == 0:
        return  # the other columns of a silent window mean nothing
    positive = 0 < window.shape < math.inf and 0 < window.scale_s < math.inf
    if window.family not in FAMILIES or not positive:
        raise ImportFormatError(
            f"{path}: line {line}: expected {' or '.join(FAMILIES)} with shape and scale above 0",
            cause=f"found {window.family!r}, {window.shape}, {window.scale_s}",
        )


def _read_blocks(
    path: Path, windows: tuple[ClientWindow, ...], digest: Any
) -> tuple[LengthBlock, ...]:
    """The blocks that the windows need: the newest at or before each."""
    if not path.exists():
        return ()
    try:
        content = json.loads(_read_text(path, digest))
        by_start = {int(start): block for start, block in content.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ImportFormatError(
            f"{path} is no ServeGen dataset",
            cause=str(error),
            hint="expected a JSON object of blocks by their start in seconds",
        ) from None
    needed = set()
    for window in windows:
        older = [start for start in by_start if start <= window.start_s]
        needed |= {max(older)} if older else set()
    blocks = []
    for start in sorted(needed):
        laws = [
            _law(by_start[start], name, f"{path}: block {start}")
            for name in ("input_tokens", "output_tokens")
        ]
        blocks.append(LengthBlock(start, *laws))
    return tuple(blocks)


def _law(block: object, name: str, where: str) -> LengthLaw:
    if not isinstance(block, dict) or not isinstance(block.get(name), str):
        found = ", ".join(block) if isinstance(block, dict) else type(block).__name__
        raise ImportFormatError(
            f"{where}: expected {name} as a dictionary in a string",
            cause=f"found {found}",
            hint="only language pools are read, no multimodal ones",
        )
    return parse_lengths(block[name], f"{where}: {name}")


def parse_lengths(text: str, where: str) -> LengthLaw:
    """``"{143: 0.25, 148: 0.75}"`` as a distribution; probabilities are normalised.

    Raises:
        ImportFormatError: anything that is not a flat dictionary of whole lengths of 0 or more
            and finite probabilities of 0 or more, with a sum above 0; nothing is evaluated.
    """
    if len(text) > _MOST_LITERAL_CHARACTERS or not _LITERAL.fullmatch(text):
        raise ImportFormatError(
            f"{where}: unsafe literal",
            cause=f"expected {{length: probability, ...}}, found {text[:60]!r}",
            hint="the file was altered or is damaged: download it again",
        )
    try:
        pairs = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ImportFormatError(
            f"{where}: not a dictionary of lengths", cause=str(error).splitlines()[0]
        ) from None
    sound = isinstance(pairs, dict) and all(
        type(tokens) is int and 0 <= tokens < 2**31 and 0 <= weight < _LARGEST_WEIGHT
        for tokens, weight in pairs.items()
    )
    if not sound or (pairs and sum(pairs.values()) <= 0):
        raise ImportFormatError(
            f"{where}: lengths must be whole and 0 or more, probabilities 0 or more",
            cause=f"found {text[:60]!r}",
        )
    tokens = np.array(sorted(pairs), dtype=np.int64)
    cumulative = np.cumsum([float(pairs[length]) for length in tokens.tolist()])
    return LengthLaw(tokens, cumulative / cumulative[-1] if len(cumulative) else cumulative)


def _read_text(path: Path, digest: Any) -> str:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise ImportFormatError(f"cannot read {path}", cause=error.strerror) from None
    except UnicodeDecodeError as error:
        raise ImportFormatError(f"{path} is not text", cause=str(error)) from None
    digest.update(f"{path.name}:{len(content)}\n".encode())
    digest.update(content)
    return text
