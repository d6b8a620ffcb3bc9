"""What the engine looks for in vLLM's configuration."""

import os
from dataclasses import make_dataclass

OLD = "too old" in os.environ.get("FAKE_VLLM", "")
KVTransferConfig = make_dataclass(
    "KVTransferConfig", ["kv_connector"] if OLD else ["kv_connector", "kv_connector_module_path"]
)
