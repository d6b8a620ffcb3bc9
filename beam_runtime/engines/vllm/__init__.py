"""BEAM in vLLM, unforked: ``--scheduler-cls beam_runtime.engines.vllm.make_scheduler``."""

from beam_runtime.engines.vllm.scheduler import make_scheduler

__all__ = ["make_scheduler"]
