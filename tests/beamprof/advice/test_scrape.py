"""What is read from vLLM's metrics, and the load that is made of it."""

import http.server
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beamprof.advice.load import load_from_rate, load_from_scrape, load_from_trace, within
from beamprof.advice.scrape import OUTPUTS, PROMPTS, Scrape, parse_scrape, read_scrape
from beamprof.errors import ImportFormatError, ReplayError, TraceError

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


def test_exemplars_and_timestamps_behind_a_value_change_nothing() -> None:
    plain = scraped(metrics())
    with_more = "\n".join(
        f'{line} 1790000000.123 # {{trace_id="a}}b"}} 0.5 1790000000.1' if line[:1] != "#" else line
        for line in metrics().splitlines()
    )
    assert scraped(with_more) == plain


def test_of_several_models_one_is_asked_for() -> None:
    other = metrics(engines=2).replace("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-8B")
    with pytest.raises(ImportFormatError, match="metrics of 2 models") as caught:
        scraped(metrics() + other)
    assert "--model Qwen/Qwen3-8B" in str(caught.value.hint)
    for said in ("Qwen/Qwen3-8B", "qwen3-8b"):
        found = parse_scrape(metrics() + other, "m", NOW_S, said)
        assert (found.model, found.engines, found.prompts.count) == ("Qwen/Qwen3-8B", 2, 4000)
    with pytest.raises(ImportFormatError, match="metrics of 2 models"):
        parse_scrape(metrics() + other, "m", NOW_S, "phi-4")
    # Of one model a user may say what it is made of.
    assert parse_scrape(metrics(), "m", NOW_S, "llama3-8b").model.endswith("8B-Instruct")


def test_servers_told_apart_by_any_label_are_engines_of_their_own() -> None:
    text = "".join(metrics().replace('engine="0"', f'engine="0",instance="{n}"') for n in "abc")
    found = scraped(text)
    assert (found.engines, found.prompts.count) == (3, 6000)
    assert load_from_scrape(found).words.startswith("2 requests/s for each of 3 engines")


def test_two_scrapes_in_a_file_are_refused() -> None:
    with pytest.raises(ImportFormatError, match="more than one scrape") as caught:
        scraped(metrics() + metrics())
    assert "twice" in str(caught.value.cause)


def test_what_the_prefix_cache_had_is_read() -> None:
    assert scraped(metrics()).cached_share == 0.0
    for name in ("vllm:prefix_cache", "vllm:gpu_prefix_cache"):
        more = "".join(
            f'{name}_{part}_total{{engine="{engine}"}} {value}\n'
            for part, value in (("hits", 30.0), ("queries", 40.0)) for engine in (0, 1)
        )  # fmt: skip
        found = scraped(metrics(2) + more)
        assert found.cached_share == 0.75
        assert load_from_scrape(found).observed is not None
        assert load_from_scrape(found).observed.cached_share == 0.75  # type: ignore[union-attr]


def test_lengths_drawn_beyond_what_the_model_takes_are_cut() -> None:
    load = load_from_scrape(scraped(metrics()))
    assert load.trace.input_tokens.max() > 3000
    cut = within(load, 3000, "m")
    assert (cut.trace.input_tokens + cut.trace.output_tokens).max() == 3000
    assert cut.trace.requests == load.trace.requests
    assert within(load, 10_000, "m") is load
    with pytest.raises(ReplayError, match="on average") as caught:
        within(load, 500, "m")
    assert "--model DIR" in str(caught.value.hint)


def test_lengths_that_somebody_names_are_not_cut() -> None:
    with pytest.raises(ReplayError, match="takes 500") as caught:
        within(load_from_rate(2.0, 800, 60), 500, "m")
    assert "--input-tokens" in str(caught.value.hint)


def test_a_trace_of_too_few_requests_is_no_load() -> None:
    trace = load_from_rate(2.0, 800, 60).trace
    assert load_from_trace(trace, "t.csv").words.endswith("requests of t.csv")
    few = replace(trace, frame=trace.frame[:8])
    with pytest.raises(TraceError, match=r"t.csv holds too few"):
        load_from_trace(few, "t.csv")


def test_a_saved_scrape_says_until_when_it_counted(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text(metrics(began_s=time.time() - 7200.0))
    assert "2 h until the file was written" in load_from_scrape(read_scrape(str(path))).words


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
    assert "for each of 4 engines" in load.words
    assert load.observed is not None and load.observed.engines == 4


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
        (metrics().replace(" 1500", " nan").replace("1600000.0", "0.0"), "no number above"),
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
            for written in (address, f"{address}/", f"{address}/metrics"):
                assert read_scrape(written).model == "meta-llama/Llama-3.1-8B-Instruct"
            with pytest.raises(ImportFormatError, match="404"):
                read_scrape(f"{address}/nix")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(ImportFormatError, match="no metrics at"):
        read_scrape(address)


@pytest.mark.parametrize("address", ["localhost:8000", "10.0.0.7:8001/metrics", "gpu-3.lan:80"])
def test_an_address_without_its_scheme_is_taken_for_one(address: str) -> None:
    with pytest.raises(ImportFormatError, match="no file") as caught:
        read_scrape(address)
    assert f"http://{address}" in str(caught.value.hint)


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
