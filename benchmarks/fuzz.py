"""Feed every reader, and the hooks, with what nobody would give them: does anything escape?

    python benchmarks/fuzz.py [--json] [--count N] [--seed S] [--only NAME ...]

escape     an exception that is no BeamError, a promise never to raise that is broken, a crash
hang       an input that takes more than a second of CPU time, or a wait of 10 s
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
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# How often each is fed, among all: the cheap ones more.
READERS = {
    "runtime.records": 40, "runtime.guards_messages": 40, "runtime.configs": 20,
    "runtime.hooks": 30, "runtime.decision_logs": 15, "runtime.zeusd_replies": 15,
    "runtime.control_requests": 6, "runtime.tables": 2, "runtime.from_table": 2,
    "readers.models": 15, "readers.metrics": 15, "readers.engine_states": 30,
    "readers.journals": 15, "readers.sweeps": 10, "readers.devices": 2, "readers.pools": 8,
    "readers.foreign_tables": 8, "readers.decision_logs": 15, "readers.traces": 3,
    "readers.own_traces": 2,
}  # fmt: skip
HANG_S = 1.0
STUCK_S = 10.0
ADDRESS_SPACE = 8 << 30
OUR_PACKAGES = ("beam_runtime", "beamprof", "fuzzing")


def work(name: str, seed: int, first: int, count: int, progress: Path) -> None:
    """Feed one reader in this process; one line of JSON at the end."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # of the libraries about the nonsense; users' filters decide
    from beam_runtime.errors import BeamError

    module, _, reader = name.partition(".")
    with tempfile.TemporaryDirectory(prefix="beam-fuzz-", dir=_memory_folder()) as folder:
        read = getattr(importlib.import_module(f"fuzzing.{module}"), reader)(Path(folder))
        begun_mb = _rss_mb()
        with progress.open("r+b") as file, mmap.mmap(file.fileno(), 8) as at:
            escapes, refused, hangs = [], 0, []
            for number in range(first, first + count):
                at[:] = struct.pack("<q", number)
                moments = random.Random(f"{seed}:{number}:{zlib.crc32(name.encode())}")
                begun_s = time.process_time()
                try:
                    read(moments)
                except BeamError:
                    refused += 1
                except Exception as error:
                    escapes.append((_where(error), number, f"{type(error).__name__}: {error!s:.200}"))
                took_s = time.process_time() - begun_s
                if took_s > HANG_S:
                    hangs.append((number, round(took_s, 2)))
            at[:] = struct.pack("<q", first + count)
    print(json.dumps({"escapes": escapes, "refused": refused, "hangs": hangs,
                      "begun_mb": begun_mb, "peak_mb": _rss_mb()}), flush=True)  # fmt: skip
    os._exit(0)  # a reader's threads are nobody's concern any more


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


def feed(name: str, seed: int, first: int, count: int) -> dict[str, object]:
    """Feed one reader in processes of its own; a process that dies or hangs costs its input."""
    found: dict[str, object] = {
        "inputs": count, "refused": 0, "escapes": Counter(), "examples": {}, "hangs": [],
        "begun_mb": 0.0, "peak_mb": 0.0,
    }  # fmt: skip
    escapes: Counter[str] = found["escapes"]  # type: ignore[assignment]
    examples: dict[str, str] = found["examples"]  # type: ignore[assignment]
    hangs: list[object] = found["hangs"]  # type: ignore[assignment]
    end = first + count
    while first < end:
        with tempfile.NamedTemporaryFile(prefix="beam-fuzz-at-") as file:
            file.write(struct.pack("<q", first))
            file.flush()
            command = [sys.executable, __file__, "--worker", name, str(seed), str(first),
                       str(end - first), file.name]  # fmt: skip
            with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as cried:
                process = subprocess.Popen(command, stdout=said, stderr=cried, text=True)
                stuck = _until_done(process, Path(file.name))
                said.seek(0)
                cried.seek(0)
                lines, last_words = said.read().splitlines(), cried.read()[-300:]
            number = _at(Path(file.name))
        if process.returncode == 0 and lines:
            result = json.loads(lines[-1])
            found["refused"] = int(found["refused"]) + result["refused"]  # type: ignore[call-overload]
            hangs += result["hangs"]
            found["begun_mb"] = result["begun_mb"]
            found["peak_mb"] = max(float(found["peak_mb"]), result["peak_mb"])  # type: ignore[arg-type]
            for where, at, words in result["escapes"]:
                escapes[where] += 1
                examples.setdefault(where, f"input {at}: {words}")
            break
        if stuck:
            hangs.append((number, STUCK_S))
        else:
            where = f"the process ended with {process.returncode}"
            escapes[where] += 1
            examples.setdefault(where, f"input {number}: {last_words}")
        first = number + 1
    return found


def _until_done(process: "subprocess.Popen[str]", progress: Path) -> bool:
    """Whether it had to be killed: the same input for too long."""
    number, since_s = -1, time.monotonic() + 60.0  # it may compile first
    while process.poll() is None:
        time.sleep(0.05)
        if (now := _at(progress)) != number:
            number, since_s = now, max(since_s, time.monotonic())
        if time.monotonic() - since_s > STUCK_S:
            process.kill()
            process.wait()
            return True
    return False


def _at(progress: Path) -> int:
    return int(struct.unpack("<q", progress.read_bytes()[:8])[0])


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
        say(f"{name:24}{count:>10}{found['refused']:>10}{sum(found['escapes'].values()):>9}"
            f"{len(found['hangs']):>7}{found['peak_mb']:>9.0f}")  # fmt: skip
        for where, often in found["escapes"].most_common():
            say(f"    {often} x {where}: {found['examples'][where]}")
        for hang in found["hangs"][:5]:
            say(f"    hang: input {hang[0]}, {hang[1]} s")
    total = {
        "inputs": sum(found["inputs"] for found in results.values()),
        "escapes": sum(sum(found["escapes"].values()) for found in results.values()),
        "kinds_of_escapes": len({where for found in results.values() for where in found["escapes"]}),
        "hangs": sum(len(found["hangs"]) for found in results.values()),
        "peak_mb": max(found["peak_mb"] for found in results.values()),
    }
    if arguments.json:
        print(json.dumps({"seed": arguments.seed, "first": arguments.first, "total": total,
                          "readers": results}, indent=2))  # fmt: skip
        return
    print(f"{total['inputs']} inputs: {total['escapes']} escapes of {total['kinds_of_escapes']} "
          f"kinds, {total['hangs']} hangs (aims 0), {total['peak_mb']:.0f} MB (aim 1,000)")  # fmt: skip


if __name__ == "__main__":
    main()
