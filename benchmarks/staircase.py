"""What putting stairs where they stand is worth, on GEMMs measured at every 8 tokens.

python benchmarks/staircase.py [--json]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl

from beam_runtime.table.staircase import find_stairs, with_feet, with_foot_edges

DATA = Path(__file__).parents[1] / ".." / "shared" / "data" / "a100-operators"
# The published A100 tables measure these.
SEEN_TOKENS = np.array([1, 16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 320, 384, 448, 512.0])


def errors(tp: int) -> dict[str, float]:
    """Mean relative error over 72..512 tokens, with straight lines and with stairs."""
    rows = pl.read_csv(DATA / "vidur_a100_mlp_llama3-70b.csv").filter(
        pl.col("num_tensor_parallel_workers") == tp
    )
    layer = [name for name in rows.columns if name.endswith(".median") and "emb" not in name]
    rows = rows.with_columns(ms=pl.sum_horizontal(layer)).group_by("num_tokens")
    measured = rows.agg(pl.col("ms").median()).sort("num_tokens")
    tokens, ms = measured["num_tokens"].to_numpy(), measured["ms"].to_numpy()
    asked = (tokens > 64) & (tokens <= SEEN_TOKENS[-1])
    seen_ms = np.interp(SEEN_TOKENS, tokens, ms)
    stairs = find_stairs(SEEN_TOKENS, seen_ms)
    edges = with_foot_edges(SEEN_TOKENS, stairs)
    with_stairs = with_feet(seen_ms[None], SEEN_TOKENS, stairs)[0]
    straight = np.interp(tokens[asked], SEEN_TOKENS, seen_ms) / ms[asked] - 1
    stepped = np.interp(tokens[asked], edges, with_stairs) / ms[asked] - 1
    return {"straight": float(np.abs(straight).mean()), "stairs": float(np.abs(stepped).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    if not DATA.is_dir():
        raise SystemExit("this benchmark needs the measured operators, which are absent")
    by_tp = {tp: errors(tp) for tp in (1, 2, 4, 8)}
    if as_json:
        print(json.dumps(by_tp, indent=2))
        return
    for tp, error in by_tp.items():
        print(
            f"tp {tp}: straight lines {error['straight']:.1%} off, "
            f"with stairs {error['stairs']:.1%}"
        )


if __name__ == "__main__":
    main()
