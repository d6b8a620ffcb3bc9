import numpy as np

from beam_runtime.types import StepShape
from beamprof.tables.knees import knees
from beamprof.tables.table_file import seal_table


def test_the_knee_is_the_cheapest_clock_of_the_same_step() -> None:
    clocks = np.array([510, 1005, 1410] * 2)
    table = seal_table(
        {
            "kind": np.full(6, "forward"),
            "clock_mhz": clocks,
            "prefill_tokens": np.array([256] * 3 + [0] * 3),
            "prefill_context_tokens": np.zeros(6, dtype=int),
            "decode_requests": np.array([0] * 3 + [64] * 3),
            "decode_context_tokens": np.array([0] * 3 + [6400] * 3),
            "latency_ms": np.array([60.0, 35.0, 27.0, 30.0, 18.0, 16.0]),
            "energy_j": np.array([19.0, 15.0, 20.0, 9.0, 7.5, 10.0]),
            "passes": np.ones(6, dtype=int),
            "source": np.full(6, "measured"),
        },
        {"model": "m", "tp": "1", "pp": "1", "stage_layers": "1", "device": "d",
         "energy_source": "nvml counter"},
    )  # fmt: skip
    decodes, chunk = knees(table)
    assert decodes.step == StepShape(0, 0, 64, 6400)
    assert (decodes.top_mhz, decodes.knee_mhz, decodes.saved) == (1410, 1005, 0.25)
    assert (chunk.step, chunk.knee_latency_ms, chunk.saved) == (StepShape(256), 35.0, 0.25)
