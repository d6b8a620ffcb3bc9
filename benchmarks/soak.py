"""Run BEAM for long, under load and faults: is memory flat, does anything stay locked or lost?

    python benchmarks/soak.py [--json] [--minutes 10] [--rate 1000] [--hours 24] [--loss 0.1]
                              [--seed S] [--only storm | --only day]

storm   real threads and real time: an engine on paper tells --rate events a second; the compiled
        search, the guard and a fake NVML (a process of its own sees it, too) at work, and every
        few seconds something goes wrong, by the seed: a driver call that fails, is slow or hangs,
        a guard that is killed, a record that is removed, an engine that stalls, events from
        another day or of no sense, an adapter that raises, promises and policies that change.
day     simulated time, one thread: an engine serves for --hours with --loss of all its events
        lost on their way, each by itself; the compiled search decides.

In the storm every event must arrive. Of the day, what is thought to be there is held against what
is, once a minute. Aims: memory flat, nothing locked, nothing lost that was not lost on purpose.
"""

import argparse
import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

from soak_day import day
from soak_storm import storm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="events/s")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--every", type=float, default=10.0, help="s between the day's requests")
    parser.add_argument("--loss", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("storm", "day"))
    arguments = parser.parse_args()
    logging.getLogger("beam_runtime").setLevel(logging.CRITICAL)  # of faults there are many
    found: dict[str, object] = {"seed": arguments.seed}
    if arguments.only != "day":
        with tempfile.TemporaryDirectory(prefix="beam-soak-") as folder:
            found["storm"] = asdict(
                storm(Path(folder), arguments.minutes * 60.0, arguments.rate, arguments.seed)
            )
    if arguments.only != "storm":
        found["day"] = asdict(day(arguments.hours, arguments.every, arguments.loss, arguments.seed))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"seed {arguments.seed}")
    for name in ("storm", "day"):
        for key, value in dict(found.get(name, {})).items():  # type: ignore[call-overload]
            shown = round(value, 3) if isinstance(value, float) else value
            print(f"  {name:6} {key.replace('_', ' '):20} {shown}")


if __name__ == "__main__":
    main()
