"""An actuator in words that another process understands: the guard opens its own from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from beam_runtime.clocks.base import ClockActuator
from beam_runtime.errors import ClockUnavailableError


class ActuatorKind(StrEnum):
    """The ways to set a clock."""

    NVML = "nvml"
    ZEUSD = "zeusd"
    COMMAND = "command"
    FILE = "file"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ActuatorSpec:
    """How a replica's GPUs are reached.

    Attributes:
        kind: which way.
        gpus: UUIDs; NVML indices are accepted too.
        socket: zeusd's.
        set_command: argv with {gpu}, {index} and {clock_mhz}; run once per GPU.
        release_command: argv with {gpu} and {index}.
        file: where FileGpus live.
    """

    kind: ActuatorKind
    gpus: tuple[str | int, ...] = ()
    socket: str = ""
    set_command: tuple[str, ...] = ()
    release_command: tuple[str, ...] = ()
    file: str = ""

    def open(self) -> ClockActuator:
        """The actuator. Raises ClockUnavailableError where it cannot work here."""
        match self.kind:
            case ActuatorKind.NVML:
                from beam_runtime.clocks.nvml import NvmlGpus

                return NvmlGpus(self.gpus)
            case ActuatorKind.ZEUSD:
                from beam_runtime.clocks.nvml import NvmlGpus
                from beam_runtime.clocks.zeusd import ZeusdGpus

                return ZeusdGpus(NvmlGpus(self.gpus), self.socket)
            case ActuatorKind.COMMAND:
                from beam_runtime.clocks.command import CommandGpus
                from beam_runtime.clocks.nvml import NvmlGpus

                return CommandGpus(NvmlGpus(self.gpus), self.set_command, self.release_command)
            case ActuatorKind.FILE:
                from beam_runtime.clocks.file_gpus import FileGpus

                return FileGpus(self.file, self.gpus)
        raise ClockUnavailableError(f"{self.kind} sets no clocks")

    @property
    def name(self) -> str:
        """What goes on record beside a lock, enough to release it; never a command."""
        place = self.socket or self.file
        return f"{self.kind}:{place}" if place else str(self.kind)

    @classmethod
    def from_name(cls, name: str, gpus: tuple[str, ...]) -> Self:
        """The actuator that set a lock on record.

        Raises:
            ClockUnavailableError: the record says how, but that cannot be repeated from it.
        """
        kind, _, place = name.partition(":")
        match kind:
            case ActuatorKind.NVML:
                return cls(ActuatorKind.NVML, gpus)
            case ActuatorKind.ZEUSD:
                return cls(ActuatorKind.ZEUSD, gpus, socket=place)
            case ActuatorKind.FILE:
                return cls(ActuatorKind.FILE, gpus, file=place)
        raise ClockUnavailableError(
            f"a lock that was set by {kind!r} cannot be released from its record",
            hint="run the site's own release command for " + ", ".join(gpus),
        )

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of to_json."""
        fields = json.loads(text)
        return cls(
            kind=ActuatorKind(fields["kind"]),
            gpus=tuple(fields["gpus"]),
            socket=fields["socket"],
            set_command=_texts(fields["set_command"]),
            release_command=_texts(fields["release_command"]),
            file=fields["file"],
        )


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
