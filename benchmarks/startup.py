"""How long `beam --help` and `import beam_runtime` take: medians over fresh processes.

    python benchmarks/startup.py [--json] [--runs N]

Aims: 250 ms and 30 ms. The import is timed inside the interpreter, without the interpreter's own
start; `beam --help` is timed from outside, as a person waits for it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

TIMED_IMPORT = (
    "import time; t = time.perf_counter(); import beam_runtime; print(time.perf_counter() - t)"
)


def help_ms() -> float:
    """Milliseconds of one `beam --help`."""
    begun_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "beamprof", "--help"], capture_output=True, check=True)
    return (time.perf_counter() - begun_s) * 1e3


def import_ms() -> float:
    """Milliseconds of one `import beam_runtime`."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED_IMPORT], capture_output=True, check=True, text=True
    )
    return float(done.stdout) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=21)
    arguments = parser.parse_args()
    medians = {}
    for name, once in (("beam_help_ms", help_ms), ("import_beam_runtime_ms", import_ms)):
        once()  # compiles bytecode and fills the page cache
        medians[name] = statistics.median(once() for _ in range(arguments.runs))
    if arguments.json:
        print(json.dumps({**medians, "runs": arguments.runs}, indent=2))
        return
    print(f"medians of {arguments.runs} fresh processes")
    print(f"  beam --help          {medians['beam_help_ms']:7.1f} ms   (aim 250)")
    print(f"  import beam_runtime  {medians['import_beam_runtime_ms']:7.1f} ms   (aim 30)")


if __name__ == "__main__":
    main()
