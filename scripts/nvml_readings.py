"""What NVML says of one GPU and how fast it says it: read only, nothing is set.

    python scripts/nvml_readings.py --seconds 10 > nvml.json

Waiting power (from the energy counter and as power usage), the counter's tick and its smallest
step, and the time that each reading takes. The GPU must be waiting meanwhile.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.errors import BeamError

CALLS = 200


def latency_us(read: Callable[[], object]) -> dict[str, float]:
    """Median and 99th percentile of a call, microseconds."""
    took = []
    for _ in range(CALLS):
        begun_s = time.perf_counter()
        read()
        took.append((time.perf_counter() - begun_s) * 1e6)
    ordered = sorted(took)
    return {"median": statistics.median(took), "p99": ordered[int(0.99 * len(ordered))]}


def counter(gpu: NvmlGpus, seconds: float) -> dict[str, float | None]:
    """Mean watts over the window, and how the counter moves: seconds and joules of a tick."""
    begun_s, begun_j = time.perf_counter(), gpu.read_energy_j()[0]
    at_s, at_j = begun_s, begun_j
    ticks_s, steps_j = [], []
    while at_s - begun_s < seconds:
        now_j, now_s = gpu.read_energy_j()[0], time.perf_counter()
        if now_j != at_j:
            ticks_s.append(now_s - at_s)
            steps_j.append(now_j - at_j)
            at_s, at_j = now_s, now_j
        elif now_s - at_s > max(seconds, 5.0):
            break  # it stands still
        time.sleep(0.0005)
    moved = len(steps_j) > 1
    return {
        "waiting_w": (at_j - begun_j) / (at_s - begun_s) if moved else None,
        "tick_s": statistics.median(ticks_s[1:]) if moved else None,
        "step_j": min(steps_j) if moved else None,
        "ticks": float(len(steps_j)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="What NVML says, and how fast. Sets nothing.")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    try:
        with NvmlGpus([asked.gpu]) as gpu:
            readings = {
                "gpu": gpu.models()[0],
                "driver": gpu.driver_version(),
                "clock_mhz": gpu.read_clock_mhz()[0],
                "power_limit_w": gpu.read_power_limit_w()[0],
                "persistence": gpu.read_persistence()[0],
                "mig": gpu.read_mig()[0],
                "temperature_c": gpu.read_temperature_c()[0],
                "throttle": gpu.read_reasons()[0],
                "power_usage_w": gpu.read_power_w()[0],
                "counter": counter(gpu, asked.seconds),
                "latency_us": {
                    "energy": latency_us(gpu.read_energy_j),
                    "power": latency_us(gpu.read_power_w),
                    "clock": latency_us(gpu.read_clock_mhz),
                    "reasons": latency_us(gpu.read_reasons),
                },
            }
    except BeamError as error:
        print(f"error: {error.message}\nhint: {error.hint or 'is this a machine with a GPU?'}",
              file=sys.stderr)  # fmt: skip
        return 2
    json.dump(readings, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
