"""What the readers of the offline half are given whole: one of each kind, to be damaged."""

import json

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
POOL = ("0,10.0,1.0,Gamma,2.0,0.5\n600,20.0,1.5,Weibull,1.0,2.0\n",
        '{"0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{5: 1.0}"}}\n')  # fmt: skip
