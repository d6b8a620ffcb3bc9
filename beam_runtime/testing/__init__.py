"""What an embedding is tested with: an engine, an actuator, a clock and an NVML without a GPU.

BEAM's own tests use nothing else. docs/testing.md shows them at work.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_runtime.testing.actuator import FakeActuator
    from beam_runtime.testing.clock import FakeClock
    from beam_runtime.testing.engine import FakeEngine, FakeRequest, Ledger
    from beam_runtime.testing.nvml import FakeGpu, FakeNvml, FakeNvmlError, fake_gpus

_HOME = {
    "FakeActuator": "actuator",
    "FakeClock": "clock",
    "FakeEngine": "engine",
    "FakeRequest": "engine",
    "Ledger": "engine",
    "FakeGpu": "nvml",
    "FakeNvml": "nvml",
    "FakeNvmlError": "nvml",
    "fake_gpus": "nvml",
}

__all__ = [
    "FakeActuator",
    "FakeClock",
    "FakeEngine",
    "FakeGpu",
    "FakeNvml",
    "FakeNvmlError",
    "FakeRequest",
    "Ledger",
    "fake_gpus",
]


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
