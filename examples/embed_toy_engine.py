"""Serve a Poisson load twice, as vLLM would and under BEAM, and compare the energy.

    beam profile --model llama3-70b --tp 2 --pp 4 --output 70b.parquet
    python examples/embed_toy_engine.py 70b.parquet --rate 1 --seconds 60

The engine is made of paper: it runs the real step composer in virtual time, its steps take and
cost what the table says, its clocks follow a few milliseconds late. The controller is the real
one, except that it has no thread: virtual time has none to wait in, so the engine's loop calls
``advance()``. How a real engine calls the hooks is in docs/embedding.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from beam_runtime import BeamError, Controller, EngineLimits, Follows, PerfTable, Slo, StepCost
from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.engine import FakeEngine, FakeRequest, Ledger


def poisson_load(rate: float, seconds: float, slo: Slo, seed: int) -> list[FakeRequest]:
    """Conversation-like requests: about 1000 tokens in, 150 out."""
    random = np.random.default_rng(seed)
    arrivals_ms = np.cumsum(random.exponential(1e3 / rate, int(rate * seconds)))
    prompts = random.lognormal(np.log(1000), 0.5, len(arrivals_ms)).clip(16, 6000)
    outputs = random.lognormal(np.log(150), 0.5, len(arrivals_ms)).clip(2, 800)
    return [
        FakeRequest(f"r{n}", float(at_ms), int(prompt), int(output), slo)
        for n, (at_ms, prompt, output) in enumerate(zip(arrivals_ms, prompts, outputs, strict=True))
    ]


def serve_vanilla(cost: StepCost, limits: EngineLimits, requests: list[FakeRequest]) -> Ledger:
    """Clocks unlocked, the largest step, decodes as they come."""
    return FakeEngine(cost, limits, requests).run()


def serve_with_beam(cost: StepCost, limits: EngineLimits, requests: list[FakeRequest]) -> Ledger:
    """The same requests; BEAM chooses clock, chunk, microbatches and pace."""
    gpus = FakeActuator(gpus=2 * limits.pp)
    engine = FakeEngine(cost, limits, requests, gpu_clock_mhz=lambda: gpus.locked_mhz[0])
    beam = Controller(
        cost, limits, actuator=gpus, follows=Follows.STEPS, threads=False,
        now_ms=lambda: engine.now_ms,
    )  # fmt: skip
    with beam:
        ledger = engine.run(beam)
        print(f"BEAM made {beam.status.counts.decisions} decisions; the last: {beam.orders.why}")
    return ledger


def stay_on(ledger: Ledger, until_ms: float, idle_w: float) -> None:
    """A server is not switched off when its last token is out: count it until then."""
    ledger.energy_j += idle_w * (until_ms - ledger.end_ms) / 1e3


def report(name: str, ledger: Ledger) -> None:
    tokens = sum(len(tokens) for tokens in ledger.outputs.values())
    ttft_ms = np.array(list(ledger.ttft_ms.values()))
    print(
        f"{name:<8} {ledger.energy_j / 1e3:8.1f} kJ {ledger.energy_j / tokens:7.2f} J/token   "
        f"TTFT p50 {np.median(ttft_ms):5.0f} ms, kept {1 - ledger.late_ttft / len(ttft_ms):.1%}   "
        f"TBT p50 {np.median(ledger.tbt_ms):4.0f} ms, kept "
        f"{1 - ledger.late_tbt / len(ledger.tbt_ms):.2%}"
    )


def missed(vanilla: Ledger, beam: Ledger) -> str:
    """Why BEAM kept fewer promises of one kind than vanilla, where it did; else nothing."""
    ttft, tbt = beam.late_ttft - vanilla.late_ttft, beam.late_tbt - vanilla.late_tbt
    if ttft > 0 > tbt:
        return (
            f"At this load not every promise can be kept: under vanilla {vanilla.late_tbt} tokens "
            f"are late behind prompts. BEAM leaves {beam.late_tbt}, by smaller chunks, and "
            f"{ttft} more prompts wait too long for that. A lower --rate keeps both."
        )
    if ttft > 0 or tbt > 0:
        return (
            f"BEAM kept fewer promises here ({ttft:+d} late first tokens, {tbt:+d} late tokens): "
            "what it predicted for them did not come."
        )
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="of beam profile")
    parser.add_argument("--rate", type=float, default=1.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they come")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.rate * arguments.seconds >= 1.0:
        parser.error("no request comes: raise --rate or --seconds")

    table = PerfTable.load(arguments.table)
    cost = with_idle_power(StepCost.from_table(table), None)
    limits = EngineLimits(pp=table.pp, max_num_seqs=128, host_gap_ms=5.5)
    load = poisson_load(arguments.rate, arguments.seconds, Slo(1000.0, 200.0), arguments.seed)

    print(f"serving {len(load)} requests twice; compiling first, if it is the first time")
    vanilla = serve_vanilla(cost, limits, load)
    beam = serve_with_beam(cost, limits, load)
    # BEAM's last answers take longer, as they may: both are counted over the same time.
    end_ms = max(vanilla.end_ms, beam.end_ms)
    rest_w = float(cost.idle_power_w.min()) * limits.pp
    stay_on(vanilla, end_ms, rest_w)
    stay_on(beam, end_ms, rest_w)
    report("vanilla", vanilla)
    report("BEAM", beam)
    if why := missed(vanilla, beam):
        print(why)
    same = "the same" if vanilla.outputs == beam.outputs else "NOT the same"
    print(f"energy: {beam.energy_j / vanilla.energy_j:.2f} of vanilla's; tokens: {same}")


if __name__ == "__main__":
    try:
        main()
    except BeamError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
