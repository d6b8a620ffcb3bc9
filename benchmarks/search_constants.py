"""What each constant of the search is worth: switched off, one at a time.

    python benchmarks/search_constants.py [--states 300] [--only UNTRIED MISSES] [--json]

Each line is a child process that compiles the search with one constant changed, and searches
random states of the published trace (benchmarks/decision.py): energy regret against playing every
candidate, SLOs missed that can be kept, and what a decision takes. A constant whose line is no
worse than the first one should go.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

# What switches each off.
OFF = {
    "UNTRIED": 0.0,  # an estimate is believed to the joule
    "TRIED": 0.0,
    "TTFT_DOUBT": 0.0,  # and to the millisecond
    "TBT_DOUBT": 0.0,
    "TRIED_DOUBT": 0.0,
    "ABOUT": 1.0,  # only the very fastest entries where nothing keeps the SLOs
    "STEEPER": 1e9,  # no clock is skipped by how fast a miss shrinks
    "NOISE": 1.0,  # a table is monotone in the clock
    "MISSES": 1_000,  # never turn to the fastest entries before the estimates end
    "TRIES": 1,
    "SAME_VIOLATION": 0.0,
    "TRUST": 1.0,
    "MOST_RISE": 0.0,  # what other plays rose above their estimates says nothing
}


def measure(name: str, states: int) -> dict[str, float]:
    """In the child: the search with one constant off."""
    import decision

    from beam_runtime.search import best, next_play

    for module in (best, next_play):
        if name in OFF and hasattr(module, name):
            setattr(module, name, OFF[name])
    cost = decision.StepCost.from_table(decision.published_table())
    policy = decision.Policy(chunk_tokens=decision.CHUNKS)
    search = decision.Search(
        cost, decision.LIMITS, policy=policy, idle_power_w=decision.IDLE_POWER_W
    )
    found = asdict(decision.optimality(search, decision.trace_states(states, decision.lengths())))
    moments = decision.moments(list(decision.trace_states(min(states, 200), decision.lengths())))
    begin_s = time.thread_time()
    for moment in moments:
        search(moment)
    return found | {"mean_us": (time.thread_time() - begin_s) / len(moments) * 1e6}


def child(name: str, states: int) -> dict[str, float]:
    """Run a child with a cache folder of its own: it must not find the others' code."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", name, "--states", str(states)]
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parent,
        )  # fmt: skip
        found: dict[str, float] = json.loads(done.stdout)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=list(OFF), choices=list(OFF))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.states)))
        return
    report = {}
    for name in ("as it is", *arguments.only):
        report[name] = found = child(name, arguments.states)
        if not arguments.json:
            print(
                f"{name:>15}: regret {100 * found['mean_regret']:.3f} % on average, "
                f"{100 * found['worst_regret']:.2f} % at worst; {found['missed']:.0f} of "
                f"{found['kept']:.0f} SLOs missed; violation {found['worst_violation']:.3f} more "
                f"at worst; {found['mean_us']:.0f} us",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
