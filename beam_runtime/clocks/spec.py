"""An actuator in words that another process understands: the guard opens its own from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from beam_runtime.clocks.base import ClockActuator, Releaser
from beam_runtime.clocks.places import by_place
from beam_runtime.errors import ClockUnavailableError

if TYPE_CHECKING:
    from beam_runtime.clocks.nodes import LocalActuator


class ActuatorKind(StrEnum):
    """The ways to set a clock."""

    NVML = "nvml"
    ZEUSD = "zeusd"
    COMMAND = "command"
    FILE = "file"
    NODE = "node"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ActuatorSpec:
    """How a replica's GPUs are reached.

    Attributes:
        kind: which way, for the GPUs of this machine.
        gpus: UUIDs; NVML indices are accepted too, and GPUs of other nodes (places.py).
        socket: zeusd's, or its address on another node.
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
        here, *others = self._places()
        local = here._open_local()
        if not others:
            return local
        from beam_runtime.clocks.nodes import AcrossNodes
        from beam_runtime.clocks.zeusd_node import ZeusdNode

        return AcrossNodes(local, [ZeusdNode(tuple(map(str, one.gpus))) for one in others])

    def open_releasers(self) -> tuple[Releaser, ...]:
        """What gives the GPUs back, each machine's by themselves.

        Raises ClockUnavailableError where this machine's cannot be reached.
        """
        from beam_runtime.clocks.zeusd_node import ZeusdNode

        return tuple(
            ZeusdNode(tuple(map(str, one.gpus)))
            if one.kind is ActuatorKind.NODE
            else one._open_local()
            for one in self._places()
        )

    def _places(self) -> tuple[Self, ...]:
        return tuple(
            replace(self, kind=ActuatorKind.NODE, gpus=gpus, socket=address)
            if address
            else replace(self, gpus=gpus)
            for address, gpus in by_place(self.gpus).items()
        ) or (self,)

    def _open_local(self) -> "LocalActuator":
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
            case ActuatorKind.NODE:
                raise ClockUnavailableError(
                    f"all of these GPUs are on other nodes: {', '.join(map(str, self.gpus))}",
                    hint="name this machine's, too: what clocks the others offer is read from them",
                )
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
            case ActuatorKind.NODE:
                return cls(ActuatorKind.NODE, gpus, socket=place)
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
