"""Kill owners of a lock, in many ways and at random moments: is a GPU left locked, or a lock taken?

    python benchmarks/kills.py [--json] [--kills N] [--seed S]

Real processes and real signals on a fake NVML that several processes share
(beam_runtime.testing.nvml_file); every set and reset is kept there with the process that did it.

locked after next start    a GPU stays locked when another controller has started and ended
locked while guarded       a second after its owner's death, with a guard that was not killed
false releases             somebody undid or replaced the lock of another, living owner
next start refused         it did not get its clock at once (it tries again after a pause)
release                    from SIGKILL of a steady owner until the GPU is free
release from the living    from the stop of an owner, or a reading that hangs, until they are free

Aims: 0, 0, 0, a p99 of 100 ms, and a second.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kill_kinds import KINDS, Kind
from kill_trials import GUARD_S, Found, Trial, false_releases, unmount


def run(kind: Kind, seed: int) -> Found:
    moments, found = random.Random(seed), Found()
    folder = Path(tempfile.mkdtemp(prefix="beam-kill-"))
    trial = Trial(folder)
    try:
        guarded = kind(trial, moments, found)
        if guarded and not trial.until(lambda: not trial.board.locked(), GUARD_S):
            found.locked_while_guarded = True
        found.false_releases = false_releases(trial)
        found.next_start_refused = not trial.next_start(seed)
        free = trial.until(lambda: not trial.board.locked(), GUARD_S)
        found.locked_after_next_start = not free
    finally:
        trial.end()
        unmount(trial)
        time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", help="only this one")
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if arguments.kind in (None, kind.__name__)]
    counts: dict[str, Counter[str]] = {kind.__name__: Counter() for kind in kinds}
    release_ms: list[float] = []
    from_living_ms: list[float] = []
    for number in range(arguments.kills):
        kind, seed = kinds[number % len(kinds)], arguments.seed * 1_000_003 + number
        found = run(kind, seed)
        count = counts[kind.__name__]
        count["kills"] += 1
        for fault in ("locked_after_next_start", "locked_while_guarded", "next_start_refused"):
            count[fault] += getattr(found, fault)
            if getattr(found, fault):
                print(f"{kind.__name__} seed {seed}: {fault}", file=sys.stderr)
        count["false_releases"] += found.false_releases
        if found.false_releases:
            print(f"{kind.__name__} seed {seed}: false releases", file=sys.stderr)
        if found.release_ms is not None:
            release_ms.append(found.release_ms)
        if found.from_living_ms is not None:
            from_living_ms.append(found.from_living_ms)
    total = sum(counts.values(), Counter())
    quantiles = statistics.quantiles(release_ms, n=100) if len(release_ms) > 1 else [0.0] * 99
    result = {
        "seed": arguments.seed,
        "total": {key: total[key] for key in counts[kinds[0].__name__]},
        "kinds": {name: dict(count) for name, count in counts.items()},
        "release_ms": {"n": len(release_ms), "p50": quantiles[49], "p99": quantiles[98]},
        "from_living_ms": {"n": len(from_living_ms), "max": max(from_living_ms, default=0.0)},
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{total['kills']} kills, seed {arguments.seed}")
    for key in ("locked_after_next_start", "locked_while_guarded", "false_releases"):
        print(f"  {key.replace('_', ' '):26} {total[key]:4}   (aim 0)")
    print(f"  next start refused         {total['next_start_refused']:4}")
    print(
        f"  release after SIGKILL      p50 {quantiles[49]:.1f} ms, p99 {quantiles[98]:.1f} ms of "
        f"{len(release_ms)}   (aim p99 100)"
    )
    if from_living_ms:
        print(
            f"  release from the living    p50 {statistics.median(from_living_ms):.0f} ms, longest "
            f"{max(from_living_ms):.0f} ms of {len(from_living_ms)}   (aim 1,000)"
        )


if __name__ == "__main__":
    main()
