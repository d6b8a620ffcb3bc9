"""Which tables no controller steers by: those by which every decision would be wrong.

`beam table check` asks more of a table. What it finds beyond this (noise, holes, clocks too far
apart) costs some of the gain, and margins and calibration bear it; a controller goes by such a
table. Where this refuses one, the engine keeps its own settings.
"""

import numpy as np

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.step_cost import FloatArray, waiting_power_w

# A pass draws more than the same GPUs waiting: the lightest of shipped and imported tables 1.5 to
# 2 times as much.
WAITING_SHARE = 0.95


def check_servable(table: PerfTable, name: str) -> None:
    """Whether a controller may go by a table.

    Raises:
        TableError: a kind of step was never measured, so that a forecast has it for nothing; or
            passes draw less than the GPUs that wait for them.
    """
    missing = unmeasured_kind(table)
    if missing:
        raise TableError(
            f"{name} holds {missing}: a controller cannot go by it",
            hint="profile chunks of prompts and decode batches",
        )
    drawn = drawn_and_waiting_w(table)
    if drawn is None:
        return
    light = int((drawn[0] < WAITING_SHARE * drawn[1]).sum())
    if light:
        worst = int(np.argmin(drawn[0] / drawn[1]))
        raise TableError(
            f"{name}: {light} of {len(drawn[0])} passes draw less than the same GPUs waiting",
            cause=f"{drawn[0][worst]:.0f} W in the lightest, {drawn[1][worst]:.0f} W waiting",
            hint="energy_j is summed over the stage's GPUs, in passes and in idle rows; more: "
            "beam table check",
        )


def unmeasured_kind(table: PerfTable) -> str:
    """The kind of step that no row is of, in words; empty where both were measured."""
    rows = table.rows(RowKind.FORWARD)
    if not (rows["prefill_tokens"] > 0).any():
        return "no pass with a chunk, so that what a prompt costs is unknown"
    if not (rows["decode_requests"] > 0).any():
        return "no pass with decodes, so that what an answer costs is unknown"
    return ""


def drawn_and_waiting_w(table: PerfTable) -> tuple[FloatArray, FloatArray] | None:
    """(R,) watts of each pass, and of its GPUs waiting at that clock; None without idle rows."""
    waiting_w = waiting_power_w(table, table.clocks_mhz)
    if waiting_w is None:
        return None
    rows = table.rows(RowKind.FORWARD)
    pass_w = rows["energy_j"] / rows["latency_ms"] * 1e3
    return pass_w, waiting_w[np.searchsorted(table.clocks_mhz, rows["clock_mhz"])]
