"""A replica over three machines: this one, with GPUs in a file, and two with a zeusd each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_zeusd import Zeusd, serving

from beam_runtime.clocks import zeusd_client
from beam_runtime.clocks.base import ClockActuator
from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.testing.nvml import FakeNvml, fake_gpus

FREE = [None, None]


class Cluster:
    """This machine's two GPUs, and two of each of two other nodes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "gpus.json"
        FileGpus.create(self.file, 2)
        self.state = StateFile(folder / "state")
        self.near, self.far = (Zeusd(FakeNvml(fake_gpus(2))) for _ in range(2))

    @property
    def spec(self) -> ActuatorSpec:
        own = FileGpus(self.file).gpus
        gpus = (*own, *self.near.names(0, 1), *self.far.names(0, 1))
        return ActuatorSpec(ActuatorKind.FILE, gpus, file=str(self.file))

    def open(self) -> ClockActuator:
        return self.spec.open()

    @property
    def locked(self) -> tuple[list[int | None], list[int | None], list[int | None]]:
        own = FileGpus.locked(self.file)
        here = [own.get(gpu) for gpu in FileGpus(self.file).gpus]
        return here, self.near.nvml.locked, self.far.nvml.locked


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(zeusd_client, "TIMEOUT_S", 0.3)
    monkeypatch.delenv("ZEUSD_TOKEN", raising=False)
    found = Cluster(tmp_path)
    with serving(found.near, found.far):
        yield found
