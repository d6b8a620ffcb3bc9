"""Feed every reader, and the hooks, with what nobody would give them: does anything escape?

    python benchmarks/fuzz.py [--json] [--count N] [--seed S] [--only NAME ...]

escape     an exception that is no BeamError, a promise never to raise that is broken, a crash
hang       an input that takes more than a second of CPU time, or waits for two minutes
memory     the most that a reader's process had

Aims: at least 2 million inputs, 0 escapes, 0 hangs, under 1 GB. Every input is made from seed,
reader and number alone: `--only NAME --first N --count 1` is that one again. Each reader has a
process of its own, with 8 GB of address space.
"""

import argparse
import importlib
import json
import logging
import mmap
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# How often each is fed, among all: the cheap ones more.
READERS = {
    "runtime.records": 40, "runtime.guards_messages": 40, "runtime.configs": 20,
    "hooks.hooks": 30, "runtime.decision_logs": 15, "runtime.zeusd_replies": 10,
    "runtime.control_requests": 6, "runtime.tables": 2, "runtime.from_table": 2,
    "readers.models": 20, "readers.metrics": 5, "readers.engine_states": 30,
    "readers.journals": 20, "readers.sweeps": 15, "readers.devices": 2, "readers.pools": 8,
    "readers.foreign_tables": 5, "readers.decision_logs": 3, "readers.traces": 3,
    "readers.own_traces": 4, "readers.names": 30, "readers.replays": 1,
}  # fmt: skip
HANG_S = 1.0
STUCK_S = 10.0
ADDRESS_SPACE = 8 << 30
OUR_PACKAGES = ("beam_runtime", "beamprof", "fuzzing")
_AT = struct.Struct("<qq")


@dataclass
class Found:
    """What came of one reader's inputs.

    Attributes:
        escapes: how often, by kind; an example of each.
        hangs: (number, seconds).
    """

    inputs: int
    refused: int = 0
    escapes: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    hangs: list[tuple[int, float]] = field(default_factory=list)
    begun_mb: float = 0.0
    peak_mb: float = 0.0

    def take_in(self, said: dict[str, Any]) -> None:
        if "escape" in said:
            self.escapes[said["escape"]] = self.escapes.get(said["escape"], 0) + 1
            self.examples.setdefault(said["escape"], f"input {said['number']}: {said['words']}")
        elif "hang" in said:
            self.hangs.append((said["hang"], said["took_s"]))
        else:
            self.begun_mb = said["begun_mb"]
            self.peak_mb = max(self.peak_mb, said["peak_mb"])


def work(name: str, seed: int, first: int, count: int, progress: Path) -> None:
    """Feed one reader in this process; a line of JSON for whatever is found, at once."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # the libraries' own about the nonsense
    from beam_runtime.errors import BeamError

    module, _, reader = name.partition(".")
    with tempfile.TemporaryDirectory(prefix="beam-fuzz-", dir=_memory_folder()) as folder:
        read = getattr(importlib.import_module(f"fuzzing.{module}"), reader)(Path(folder))
        begun_mb, refused = _rss_mb(), 0
        with progress.open("r+b") as file, mmap.mmap(file.fileno(), _AT.size) as at:
            for number in range(first, first + count):
                _AT.pack_into(at, 0, number, refused)
                begun_s = time.process_time()
                try:
                    read(moments_of(name, seed, number))
                except BeamError:
                    refused += 1
                except Exception as error:
                    words = f"{type(error).__name__}: {error!s:.200}"
                    _say(escape=_where(error), number=number, words=words)
                took_s = time.process_time() - begun_s
                if took_s > HANG_S:
                    _say(hang=number, took_s=round(took_s, 2))
            _AT.pack_into(at, 0, first + count, refused)
    _say(begun_mb=begun_mb, peak_mb=_rss_mb())
    os._exit(0)  # a reader's threads are nobody's concern any more


def moments_of(name: str, seed: int, number: int) -> random.Random:
    """All chance in one input."""
    return random.Random(f"{seed}:{number}:{zlib.crc32(name.encode())}")


def _say(**words: object) -> None:
    print(json.dumps(words), flush=True)


def _where(error: BaseException) -> str:
    """The kind of an escape: its type, and the last of our lines that it went through."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    frames = traceback.extract_tb(root.__traceback__)
    ours = [f for f in frames if any(f"/{one}/" in f.filename for one in OUR_PACKAGES)]
    last = (ours or frames)[-1]
    return f"{type(root).__name__} at {'/'.join(Path(last.filename).parts[-3:])}:{last.lineno}"


def _rss_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def feed(name: str, seed: int, first: int, count: int) -> Found:
    """Feed one reader in processes of its own; a process that dies or hangs costs its input."""
    found, end = Found(inputs=count), first + count
    while first < end:
        with (
            tempfile.NamedTemporaryFile(prefix="beam-fuzz-at-") as at,
            tempfile.TemporaryFile("w+") as said,
            tempfile.TemporaryFile("w+") as cried,
        ):
            at.write(_AT.pack(first, 0))
            at.flush()
            process = subprocess.Popen(
                [sys.executable, __file__, "--worker", name, str(seed), str(first),
                 str(end - first), at.name], stdout=said, stderr=cried, text=True,
            )  # fmt: skip
            stuck = _until_done(process, Path(at.name))
            said.seek(0)
            for line in said:
                found.take_in(json.loads(line))
            first, refused = _at(Path(at.name))
            found.refused += refused
            if stuck:
                found.hangs.append((first, STUCK_S))
            elif process.returncode != 0:
                cried.seek(0)
                where = f"the process ended with {process.returncode}"
                found.take_in({"escape": where, "number": first, "words": cried.read()[-300:]})
            first += 1
    return found


def _until_done(process: "subprocess.Popen[str]", progress: Path) -> bool:
    """Whether it had to be killed: the same input for too long, by its own clock or the wall's."""
    number, since_s, since_cpu_s = -1, time.monotonic(), 0.0
    patience_s = 60.0  # at the beginning it may compile
    while process.poll() is None:
        time.sleep(0.05)
        now_s, now_cpu_s = time.monotonic(), _cpu_s(process.pid)
        if (now := _at(progress)[0]) != number:
            if number >= 0:
                patience_s = 0.0
            number, since_s, since_cpu_s = now, now_s, now_cpu_s
        # A machine that is busy otherwise is no reader's fault, a reader that waits is.
        stuck = now_cpu_s - since_cpu_s > STUCK_S + patience_s
        if stuck or now_s - since_s > 12 * STUCK_S + patience_s:
            process.kill()
            process.wait()
            return True
    return False


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _at(progress: Path) -> tuple[int, int]:
    """(number of the input that it is at, how many were refused before)."""
    number, refused = _AT.unpack(progress.read_bytes()[: _AT.size])
    return number, refused


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        name, seed, first, count, progress = sys.argv[2:]
        work(name, int(seed), int(first), int(count), Path(progress))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", type=int, default=20_000, help="inputs of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", nargs="*", metavar="NAME", help=f"of {', '.join(READERS)}")
    arguments = parser.parse_args()
    chosen = {name: READERS[name] for name in arguments.only or READERS}
    shares = sum(chosen.values())
    say: Callable[..., None] = print if not arguments.json else lambda *_: None
    say(f"seed {arguments.seed}")
    say(f"{'reader':24}{'inputs':>10}{'refused':>10}{'escapes':>9}{'hangs':>7}{'peak MB':>9}")
    results = {}
    for name, share in chosen.items():
        count = max(1, arguments.count * share // shares)
        found = results[name] = feed(name, arguments.seed, arguments.first, count)
        say(f"{name:24}{count:>10}{found.refused:>10}{sum(found.escapes.values()):>9}"
            f"{len(found.hangs):>7}{found.peak_mb:>9.0f}")  # fmt: skip
        for where, often in found.escapes.items():
            say(f"    {often} x {where}: {found.examples[where]}")
        for number, took_s in found.hangs[:5]:
            say(f"    hang: input {number}, {took_s} s")
    kinds = {where for found in results.values() for where in found.escapes}
    total = {
        "inputs": sum(found.inputs for found in results.values()),
        "escapes": sum(sum(found.escapes.values()) for found in results.values()),
        "kinds_of_escapes": len(kinds),
        "hangs": sum(len(found.hangs) for found in results.values()),
        "peak_mb": max(found.peak_mb for found in results.values()),
    }
    if arguments.json:
        readers = {name: asdict(found) for name, found in results.items()}
        print(json.dumps({"seed": arguments.seed, "first": arguments.first, "total": total,
                          "readers": readers}, indent=2))  # fmt: skip
        return
    print(
        f"{total['inputs']} inputs: {total['escapes']} escapes of {len(kinds)} kinds, "
        f"{total['hangs']} hangs (aims 0), {total['peak_mb']:.0f} MB (aim 1,000)"
    )


if __name__ == "__main__":
    main()
