"""What is read from vLLM's metrics, and the load that is made of it."""

import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from beamprof.advice.load import load_from_rate, load_from_scrape
from beamprof.advice.scrape import OUTPUTS, PROMPTS, Scrape, parse_scrape, read_scrape
from beamprof.errors import ImportFormatError, TraceError

NOW_S = 1_800_000_000.0


def histogram(name: str, counts: dict[str, int], total: float, labels: str) -> list[str]:
    """Prometheus's cumulated buckets."""
    lines, below = [f"# HELP {name} Histogram.", f"# TYPE {name} histogram"], 0
    for edge, count in counts.items():
        below += count
        lines.append(f'{name}_bucket{{{labels},le="{edge}"}} {float(below)}')
    return [*lines, f"{name}_count{{{labels}}} {float(below)}", f"{name}_sum{{{labels}}} {total}"]


def metrics(engines: int = 1, began_s: float | None = NOW_S - 1000.0) -> str:
    """What vLLM says after 2,000 requests of each engine: 800 tokens in, 150 out on average."""
    lines = [] if began_s is None else [f"process_start_time_seconds {began_s}"]
    for engine in range(engines):
        labels = f'engine="{engine}",model_name="meta-llama/Llama-3.1-8B-Instruct"'
        lines += histogram(PROMPTS, {"100.0": 200, "1000.0": 1300, "5000.0": 500, "+Inf": 0},
                           2000 * 800.0, labels)  # fmt: skip
        lines += histogram(OUTPUTS, {"100.0": 700, "500.0": 1300, "+Inf": 0}, 2000 * 150.0, labels)
        lines += histogram("vllm:time_to_first_token_seconds", {"0.1": 2000, "+Inf": 0}, 120.0,
                           labels)  # fmt: skip
        lines += histogram("vllm:time_per_output_token_seconds", {"0.1": 9000, "+Inf": 0}, 180.0,
                           labels)  # fmt: skip
    return "\n".join(lines) + "\n"


def scraped(text: str) -> Scrape:
    return parse_scrape(text, "metrics.txt", NOW_S)


def test_lengths_times_and_the_model_are_read() -> None:
    found = scraped(metrics())
    assert (found.model, found.engines, found.seconds) == (
        "meta-llama/Llama-3.1-8B-Instruct", 1, 1000.0,
    )  # fmt: skip
    assert found.prompts.counts == (200, 1300, 500, 0)
    assert (found.prompts.mean, found.outputs.mean) == (800.0, 150.0)
    assert found.ttft_s is not None and found.ttft_s.mean == pytest.approx(0.06)
    assert found.tbt_s is not None and found.tbt_s.mean == pytest.approx(0.02)


def test_the_load_has_the_servers_rate_and_lengths() -> None:
    load = load_from_scrape(scraped(metrics()))
    assert load.trace.requests / load.trace.duration_s == pytest.approx(2.0, rel=0.15)
    assert load.trace.input_tokens.mean() == pytest.approx(800, rel=0.01)
    assert load.trace.output_tokens.mean() == pytest.approx(150, rel=0.01)
    # A tenth of the prompts are short, a quarter long: not one length for all.
    assert np.quantile(load.trace.input_tokens, 0.05) < 200
    assert np.quantile(load.trace.input_tokens, 0.95) > 1500
    assert load.observed is not None and load.observed.ttft_ms == pytest.approx(60.0)


def test_each_engine_has_its_share_of_the_rate() -> None:
    load = load_from_scrape(scraped(metrics(engines=4)))
    assert load.trace.requests / load.trace.duration_s == pytest.approx(2.0, rel=0.15)
    assert "for each engine" in load.words


def test_the_histograms_own_beginning_goes_before_the_processs() -> None:
    created = f'{PROMPTS}_created{{engine="0"}} {NOW_S - 500.0}\n'
    assert scraped(metrics() + created).seconds == 500.0


@pytest.mark.parametrize("began_s", [None, NOW_S + 60.0, 0.0])
def test_without_a_beginning_the_rate_is_asked_for(began_s: float | None) -> None:
    found = scraped(metrics(began_s=began_s))
    with pytest.raises(TraceError, match="since when") as refused:
        load_from_scrape(found)
    assert "--rate" in (refused.value.hint or "")
    given = load_from_scrape(found, 5.0)
    assert given.trace.requests / given.trace.duration_s == pytest.approx(5.0, rel=0.15)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no Prometheus text"),
        ("<html><body>404</body></html>", "no Prometheus text"),
        ("node_cpu_seconds_total 1\n", "not vLLM's"),
        (metrics().replace(" 1500", " nan").replace("1600000.0", "0.0"), "finished no request"),
        ("\n".join(histogram(PROMPTS, {"1.0": 0, "+Inf": 0}, 0.0, 'a="b"')
                   + histogram(OUTPUTS, {"1.0": 0, "+Inf": 0}, 0.0, 'a="b"')), "finished no"),
    ],
)  # fmt: skip
def test_what_is_no_load_is_refused(text: str, words: str) -> None:
    with pytest.raises(ImportFormatError, match=words):
        scraped(text)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), 1e9])
def test_senseless_rates_are_refused(rate: float) -> None:
    with pytest.raises(TraceError):
        load_from_rate(rate, 1000, 100)
    with pytest.raises(TraceError):
        load_from_scrape(scraped(metrics()), rate)


def test_a_live_server_is_asked(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/metrics"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(metrics().encode() if known else b"")

        def log_message(self, format: str, *words: object) -> None:  # noqa: A002 - likewise
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            assert read_scrape(address).model == "meta-llama/Llama-3.1-8B-Instruct"
            with pytest.raises(ImportFormatError, match="404"):
                read_scrape(f"{address}/nix")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(ImportFormatError, match="no metrics at"):
        read_scrape(address)


def test_a_part_of_vllms_metrics_is_said_to_be_that() -> None:
    with pytest.raises(ImportFormatError, match="a part of vLLM's metrics"):
        scraped('vllm:prompt_tokens_total{engine="0"} 5\n')
    with pytest.raises(ImportFormatError, match="it is not vLLM's"):
        scraped("sglang:prompt_tokens_total 5\n")


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    table = tmp_path / "metrics.txt"
    table.write_bytes(b"PAR1\xa0\x00")
    with pytest.raises(ImportFormatError, match="is a Parquet file"):
        read_scrape(str(table))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ImportFormatError, match="no file"):
        read_scrape("nix.txt")


def test_a_label_without_an_end_costs_its_line_and_no_time() -> None:
    # Tried from each letter anew, this would take minutes.
    line = f"{PROMPTS}_bucket{{{'x' * 300_000}}} 5\n"
    assert scraped(line + metrics()).prompts.counts == (200, 1300, 500, 0)
