"""What a coarser plan costs in accuracy: the numbers that beamprof.profiler.expectation states.

1. Clocks: StepCost fitted on 3, 5, 7 and 9 of the 31 clocks of the published 70B table, evenly
   spread, asked at the others.
2. Cells: StepCost fitted on ever fewer cells of the default grid, composed from measured A100
   operators, asked for the batches of a served trace (the worst of three chunk sizes).

    python benchmarks/plan_error.py [--json]
"""

import argparse
import json

from step_cost import DATA, unseen_clocks, unseen_steps

from beamprof.profiler.expectation import BY_CLOCKS, LATENCY_BY_SHARE

TABLE = "dvfs_profile_NVIDIA A100-SXM4-80GB_meta-llama_Llama-3.3-70B-Instruct_tp2_pp4_one.csv"
CLOCKS_MHZ = {
    3: (510, 960, 1410),
    5: (510, 750, 960, 1170, 1410),
    7: (510, 660, 810, 960, 1110, 1260, 1410),
    9: (510, 630, 750, 870, 960, 1050, 1140, 1260, 1410),
}
CELLS = (60, 36, 32, 28, 24, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    if not DATA.is_dir():
        raise SystemExit(f"this benchmark needs the measurements in {DATA.name}/, which are absent")
    clocks = {}
    for count, clocks_mhz in CLOCKS_MHZ.items():
        errors = unseen_clocks(DATA / "measured-a100" / TABLE, clocks_mhz)
        clocks[count] = {quantity: error.mape for quantity, error in errors.items()}
    cells = {}
    for most in CELLS:
        count, errors = unseen_steps(most)
        cells[count] = max(error.mape for name, error in errors.items() if name.endswith("all"))
    if as_json:
        print(json.dumps({"by_clocks": clocks, "by_cells": cells}, indent=2))
        return
    print("clocks  latency  energy   (stated)")
    stated = {count: (latency, energy) for count, latency, energy in BY_CLOCKS}
    for count, error in clocks.items():
        latency, energy = stated[count]
        print(f"{count:6d} {error['latency']:8.2%} {error['energy']:7.2%}", end="   ")
        print(f"({latency:.1%}, {energy:.1%})")
    full = max(cells)
    print("cells   share    worst over all steps")
    for count, error in cells.items():
        print(f"{count:5d} {count / full:7.0%} {error:13.2%}")
    print(f"stated by share of the full grid: {LATENCY_BY_SHARE}")


if __name__ == "__main__":
    main()
