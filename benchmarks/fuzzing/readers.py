"""Readers of the offline half: tables, traces, models, sweeps, journals, metrics, results.

Each function here makes its samples in a folder and returns what reads one damaged input.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from fuzzing.damage import damaged

Read = Callable[[random.Random], object]

_JSON_ROW = {"timestamp": 0, "input_length": 4808, "output_length": 10}
TRACES: dict[str, str] = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
    "2023-11-16 18:17:04.0319600,3180,8\n",
    "beam-artifact": "TIMESTAMP,ContextTokens,GeneratedTokens,timestamp\n"
    "1970-01-01 19:00:00.1+0000,4808,10,x\n1970-01-01 19:00:00.152+0000,3180,8,x\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,GPT-4,4808,10,4818,API log\n5.052,ChatGPT,3180,8,3188,API log\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,4808,10\n0.052,3180,8\n",
    "servegen": "request_id,arrival_s,input_tokens,output_tokens,client_id\n"
    "0,0.0,4808,10,7\n1,0.052,3180,8,7\n",
    "mooncake": "".join(
        json.dumps({**_JSON_ROW, "timestamp": 52 * n, "hash_ids": list(range(10))}) + "\n"
        for n in range(2)
    ),
    "bailian": "".join(
        json.dumps({**_JSON_ROW, "chat_id": n, "parent_chat_id": n - 1, "turn": n}) + "\n"
        for n in range(2)
    ),
    "aiperf": "".join(json.dumps({**_JSON_ROW, "session_id": f"s{n}"}) + "\n" for n in range(2)),
    "splitwise": "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,"
    "token_size\n0,0,0,0.0,1,4808,10\n1,0,0,0.052,1,3180,8\n",
    "llmservingsim": "input_toks\toutput_toks\tarrival_time_ns\n4808\t10\t0\n3180\t8\t52000000\n",
    "served-log": "".join(
        json.dumps({"input_toks": 48, "output_toks": 10, "arrival_time": 1790000000.0 + n,
                    "first_token_ts": 1790000001.0 + n, "last_token_ts": 1790000002.0 + n}) + "\n"
        for n in range(2)
    ),
    "guidellm": json.dumps({"benchmarks": [{"requests": {"successful": [
        {"prompt_tokens": 4808, "output_tokens": 10, "start_time": 1790000000.0,
         "first_token_time": 1790000001.0, "last_token_time": 1790000002.0}]}}]}),
    "aiperf-records": "".join(
        json.dumps({"metadata": {"request_start_ns": 1790000000000000000 + n,
                                 "benchmark_phase": "profiling"},
                    "metrics": {"input_sequence_length": {"value": 48, "unit": "tokens"},
                                "output_sequence_length": {"value": 10, "unit": "tokens"},
                                "time_to_first_token": {"value": 250.0, "unit": "ms"},
                                "request_latency": {"value": 900.0, "unit": "ms"}},
                    "error": None}) + "\n"
        for n in range(2)
    ),
    "vllm-bench": json.dumps({"input_lens": [4808, 3180], "output_lens": [10, 8],
                              "start_times": [71.5, 71.552], "ttfts": [0.5, 0.25],
                              "itls": [[0.125] * 9, [0.25] * 7], "errors": ["", ""]}),
    "token-counts": "timestamp,prompt_tokens_count,output_tokens_count\n"
    "1790000000.0,4808,10\n1790000000.052,3180,8\n",
    "jsonl": '{"arrival_s": 0, "input_tokens": 4808, "output_tokens": 10}\n'
    '\n{"arrival_s": 0.052, "input_tokens": 3180, "output_tokens": 8, "slo_class": "chat"}\n',
}  # fmt: skip
CONFIGS: tuple[dict[str, object], ...] = (
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
     "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
     "num_hidden_layers": 32, "vocab_size": 128256, "torch_dtype": "bfloat16", "hidden_act": "silu",
     "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
     "rope_scaling": {"factor": 8.0, "rope_type": "llama3"}, "tie_word_embeddings": False},
    {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
     "intermediate_size": 6144, "moe_intermediate_size": 768, "num_attention_heads": 32,
     "num_key_value_heads": 4, "head_dim": 128, "num_hidden_layers": 48, "num_experts": 128,
     "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
     "norm_topk_prob": True, "vocab_size": 151936, "max_position_embeddings": 40960,
     "torch_dtype": "bfloat16", "hidden_act": "silu",
     "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
     "vision_config": {"hidden_size": 1024}, "text_config": {
         "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
         "num_hidden_layers": 40, "vocab_size": 131072, "max_position_embeddings": 131072,
         "sliding_window": None}},
)  # fmt: skip
METRICS = """process_start_time_seconds 1699999000.0
vllm:request_prompt_tokens_bucket{engine="0",model_name="m",le="100.0"} 200.0
vllm:request_prompt_tokens_bucket{engine="0",model_name="m",le="+Inf"} 2000.0
vllm:request_prompt_tokens_count{engine="0",model_name="m"} 2000.0
vllm:request_prompt_tokens_sum{engine="0",model_name="m"} 1600000.0
vllm:request_generation_tokens_bucket{engine="0",model_name="m",le="100.0"} 700.0
vllm:request_generation_tokens_bucket{engine="0",model_name="m",le="+Inf"} 2000.0
vllm:request_generation_tokens_count{engine="0",model_name="m"} 2000.0
vllm:request_generation_tokens_sum{engine="0",model_name="m"} 300000.0
vllm:time_to_first_token_seconds_bucket{engine="0",model_name="m",le="0.1"} 1900.0
vllm:time_to_first_token_seconds_bucket{engine="0",model_name="m",le="+Inf"} 2000.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 2000.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 120.0
"""
STATE = {
    "waiting": [{"prompt_tokens": 900, "waited_ms": 5.0, "cached_tokens": 16,
                 "slo": {"ttft_ms": 500, "tbt_ms": 100}}],
    "running": [{"context_tokens": 700, "since_token_ms": 3.0}], "clock_mhz": 1410,
    "free_blocks": 1000,
}  # fmt: skip
SWEEP = """model = "llama3-8b"
tp = 1
clocks = "510,960,1410"
max_tokens = 128
trials = 2
window = "1s"
budget = "15m"
seed = 0
assume_power = "65W"
"""
STUDY = """tables = ["table.parquet"]
traces = ["trace.jsonl"]
policies = ["vanilla", "beam"]
slos = ["1s/200ms", "1s/tpot=100ms", "1s/200ms@99%"]
noises = [0.0, 0.03]
seeds = "0:4:1"
host_gap = "6.8ms"
idle_power = "45W"
max_model_len = 8192
"""
_SCRAPED_S = 1_700_000_000
POOL = ("0,10.0,1.0,Gamma,2.0,0.5\n600,20.0,1.5,Weibull,1.0,2.0\n",
        '{"0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{5: 1.0}"}}\n')  # fmt: skip


def _file(path: Path, samples: list[bytes], read: Callable[[Path], object]) -> Read:
    """Reads one damaged file."""

    def once(moments: random.Random) -> object:
        path.write_bytes(damaged(moments.choice(samples), moments))
        return read(path)

    return once


def traces(folder: Path) -> Read:
    """Any format's importer, by its columns or by name, and whatever carries it."""
    import bz2
    import gzip
    import io
    import lzma

    import polars as pl

    from beamprof.traces.importing import ImportOptions, import_trace
    from beamprof.traces.policies import BadRows

    packed = io.BytesIO()
    pl.read_csv(io.StringIO(TRACES["servegen"])).write_parquet(packed)
    mooncake = TRACES["mooncake"].encode()
    samples = {
        **{name: [text.encode()] for name, text in TRACES.items()},
        "": [packed.getvalue(), *(pack(mooncake) for pack in (gzip.compress, bz2.compress,
                                                              lzma.compress))],
    }  # fmt: skip
    path = folder / "trace"

    def once(moments: random.Random) -> object:
        name = moments.choice(tuple(samples))
        path.write_bytes(damaged(moments.choice(samples[name]), moments))
        options = ImportOptions(
            bad_rows=moments.choice(list(BadRows)), sort=moments.random() < 0.5,
            rate_rps=moments.choice((None, None, None, 2.0)),
        )  # fmt: skip
        return import_trace(path, format_name=moments.choice((None, name or None)), options=options)

    return once


def own_traces(folder: Path) -> Read:
    """A trace of ours and its sidecar."""
    from beamprof.traces.importing import import_trace
    from beamprof.traces.trace_file import load_trace, save_trace, sidecar_path

    foreign = folder / "foreign"
    foreign.write_text(TRACES["jsonl"])
    names = [folder / name for name in ("t.parquet", "t.csv")]
    whole = {}
    for name in names:
        save_trace(import_trace(foreign), name)
        whole[name] = name.read_bytes(), sidecar_path(name).read_bytes()

    def once(moments: random.Random) -> object:
        path = moments.choice(names)
        rows, said = whole[path]
        both = moments.random()
        path.write_bytes(damaged(rows, moments) if both < 0.6 else rows)
        sidecar_path(path).write_bytes(damaged(said, moments) if both > 0.4 else said)
        return load_trace(path)

    return once


def models(folder: Path) -> Read:
    """config.json, and the stage that is made of it."""
    from beamprof.models.config import read_config

    samples = [json.dumps(config, indent=1).encode() for config in CONFIGS]
    return _file(folder / "config.json", samples, lambda path: read_config(path).shard(2, 2))


def sweeps(folder: Path) -> Read:
    """A sweep, a study and a user's settings."""
    from beamprof.profiler.spec import resolve_spec
    from beamprof.replay.study_spec import resolve_study

    def read(path: Path) -> object:
        return resolve_spec(sweep=str(path))

    one = _file(folder / "sweep.toml", [SWEEP.encode()], read)
    other = _file(folder / "study.toml", [STUDY.encode()], lambda path: resolve_study(file=path))
    return lambda moments: moments.choice((one, other))(moments)


def devices(folder: Path) -> Read:
    """A device file."""
    from beamprof.devices import device

    shipped = Path(device.__file__).parent / "a100-sxm4-80gb.toml"
    return _file(folder / "device.toml", [shipped.read_bytes()],
                 lambda path: device.resolve_device(str(path)))  # fmt: skip


def metrics(folder: Path) -> Read:
    """vLLM's metrics, and the load that is made of them."""
    from beamprof.advice.load import load_from_scrape
    from beamprof.advice.scrape import read_scrape

    def read(path: Path) -> object:
        os.utime(path, (_SCRAPED_S, _SCRAPED_S))
        return load_from_scrape(read_scrape(str(path)))

    return _file(folder / "metrics.txt", [METRICS.encode()], read)


def engine_states(folder: Path) -> Read:
    """A state for beam decide, down to the snapshot."""
    from beam_runtime.types import EngineLimits, Slo
    from beamprof.decide.engine_state import read_state

    limits = EngineLimits(pp=2)
    return _file(folder / "state.json", [json.dumps(STATE).encode()],
                 lambda path: read_state(path).snapshot(limits, Slo(), 1410))  # fmt: skip


def journals(folder: Path) -> Read:
    """A sweep's journal."""
    from beam_runtime.table.schema import RowKind
    from beam_runtime.types import Source
    from beamprof.backends.base import Measurement
    from beamprof.backends.cell import Cell
    from beamprof.profiler.journal import Journal, peek
    from beamprof.profiler.plan import Trial

    sweep = {"model": "llama3-8b", "trials": "2"}
    path = folder / "journal.jsonl"
    with Journal.open(path, sweep) as journal:
        for number in range(3):
            cell = Cell(RowKind.FORWARD, 1410, 64, 0, 8, 4096)
            measured = Measurement(2.0, 0.5, Source.MEASURED, 0.001, 0.01, 1395.0, passes=10)
            journal.append(Trial(cell, number), measured)
    whole = path.read_bytes()

    def once(moments: random.Random) -> object:
        path.write_bytes(damaged(whole, moments))
        if moments.random() < 0.3:
            return peek(path)
        with Journal.open(path, sweep) as journal:
            return journal.entries

    return once


def pools(folder: Path) -> Read:
    """A ServeGen pool of one client."""
    from beamprof.traces.servegen_pool import read_pool

    rows, lengths = (text.encode() for text in POOL)
    (folder / "pool").mkdir(exist_ok=True)
    at = folder / "pool"

    def once(moments: random.Random) -> object:
        both = moments.random()
        name, other = at / "chunk-0-trace.csv", at / "chunk-0-dataset.json"
        name.write_bytes(damaged(rows, moments) if both < 0.6 else rows)
        other.write_bytes(damaged(lengths, moments) if both > 0.4 else lengths)
        return read_pool(at, 0.0, 1200.0)

    return once


def foreign_tables(folder: Path) -> Read:
    """A published CSV of measurements."""
    from beamprof.tables.importers import ImportOverrides, importer

    text = (
        "clock,batch_size,decode_tokens,total_ctx_len,time_taken,energy_consumption,num_trials,"
        "valid\n1410,1,60,2048,0.012,7630.5,50,1\n1410,128,60,40000,0.030,18000.0,50,1\n"
        "510,1,60,2048,0.028,8800.0,25,1\n510,128,60,40000,0.060,19000.0,25,1\n"
    )
    name = "dvfs_profile_NVIDIA A100-SXM4-80GB_meta-llama_Llama-3.3-70B-Instruct_tp2_pp4_one.csv"
    read = importer("beam-artifact")
    return _file(folder / name, [text.encode()], lambda path: read(path, ImportOverrides()))


def decision_logs(folder: Path) -> Read:
    """A decision log, as beam report reads it."""
    from fuzzing.hooks import written_log

    from beamprof.report.html.log_run import load_log

    text = written_log(folder).read_bytes()
    return _file(folder / "decisions.jsonl", [text], load_log)


def names(folder: Path) -> Read:
    """What a user types: files that no file can be called, models, promises, clocks, times."""
    from beam_runtime.table.perf_table import PerfTable
    from beamprof import units
    from beamprof.advice.scrape import read_scrape
    from beamprof.decide.engine_state import read_state, state_of
    from beamprof.devices.device import resolve_device
    from beamprof.files import check_writable
    from beamprof.models.registry import resolve_model
    from beamprof.profiler.spec import resolve_spec
    from beamprof.replay.saved import load_replay
    from beamprof.replay.saved_study import load_study
    from beamprof.replay.study_spec import resolve_study
    from beamprof.slo import parse_slo
    from beamprof.tables.importers import ImportOverrides, importer
    from beamprof.traces.importing import open_trace
    from beamprof.traces.servegen_pool import read_pool

    readers: list[Callable[[str], object]] = [
        resolve_model, resolve_device, read_scrape, PerfTable.load,
        lambda name: resolve_spec(sweep=name), lambda name: open_trace(Path(name)),
        lambda name: read_state(Path(name)), lambda name: load_replay(Path(name)),
        lambda name: load_study(Path(name)), lambda name: read_pool(Path(name), 0.0, 600.0),
        lambda name: check_writable(Path(name), force=False),
        lambda name: importer("aiconfigurator")(Path(name), ImportOverrides()),
        lambda name: importer("beam-artifact")(Path(name), ImportOverrides()),
        lambda name: resolve_study({"tables": name, "traces": name, "seeds": name}),
        lambda name: parse_slo(name, "slo"), lambda name: units.parse_clocks(name, "clocks"),
        lambda name: units.parse_duration_s(name, "window"),
        lambda name: units.parse_power_w(name, "power"), lambda name: state_of(name, name),
    ]  # fmt: skip
    samples = [b"llama3-8b", b"meta-llama/Llama-3.1-8B", b"a100-sxm4-80gb.toml", b"~/t.parquet",
               b"~nobody-here/x.json", b"x/y.toml", b"1s/200ms@99%", b"1s/tpot=100ms", b"15m",
               b"65W", b"510,960,1410", b"210:1410:15", b"0:4:1", b"500x", b"t.csv"]  # fmt: skip

    def once(moments: random.Random) -> object:
        name = damaged(moments.choice(samples), moments)[:30_000]
        return moments.choice(readers)(name.decode("utf-8", "surrogateescape"))

    return once


def replays(folder: Path) -> Read:
    """What beam replay wrote, for beam report: bytes that fell over, and other words in them."""
    import io

    import pyarrow.parquet as pq
    from fuzzing.tables import sample_table

    from beam_runtime.table.perf_table import PerfTable
    from beamprof.replay.ladder import replay
    from beamprof.replay.options import ReplayOptions
    from beamprof.replay.results import FILES, METADATA_KEY
    from beamprof.replay.saved import load_replay
    from beamprof.traces.synthetic import Lengths, poisson

    table = folder / "table.parquet"
    table.write_bytes(sample_table(folder))
    trace = poisson(4.0, 20.0, lengths=Lengths(200, 20), seed=1)
    out = folder / "replay"
    replay(PerfTable.load(table), trace, ["vanilla"], ReplayOptions(), output=out, command="beam")
    whole = {name: (out / f"{name}.parquet").read_bytes() for name in FILES}
    key = METADATA_KEY.encode()

    def reworded(data: bytes, moments: random.Random) -> bytes:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            rows, said = file.read(), dict(file.metadata.metadata)
        said[key] = damaged(said[key], moments)
        sink = io.BytesIO()
        pq.write_table(rows.replace_schema_metadata(said), sink)
        return sink.getvalue()

    def once(moments: random.Random) -> object:
        seed = moments.random()  # the same words in all files, or bytes of one
        changed = moments.choice(tuple(whole)) if moments.random() < 0.5 else ""
        for name, data in whole.items():
            spoilt = data
            if not changed:
                spoilt = reworded(data, random.Random(seed))
            elif name == changed:
                spoilt = damaged(data, moments)
            (out / f"{name}.parquet").write_bytes(spoilt)
        return load_replay(out)

    return once
