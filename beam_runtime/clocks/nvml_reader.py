"""What other ways of setting clocks share with NVML: reading needs no rights."""

from beam_runtime.clocks.base import ClockReading
from beam_runtime.clocks.nvml import NvmlGpus


class NvmlReader:
    """The reading half of a ClockActuator.

    Args:
        gpus: the GPUs through NVML.
    """

    def __init__(self, gpus: NvmlGpus) -> None:
        self._nvml = gpus

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs."""
        return self._nvml.gpus

    def models(self) -> tuple[str, ...]:
        """Product names."""
        return self._nvml.models()

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """As NVML lists them."""
        return self._nvml.supported_clocks_mhz()

    def read_back(self) -> tuple[ClockReading, ...]:
        """As NVML reads them."""
        return self._nvml.read_back()
