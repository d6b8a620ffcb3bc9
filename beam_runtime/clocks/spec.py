"""An actuator in words that another process understands: the guard opens its own from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from beam_runtime.clocks.base import ClockActuator, Releaser
from beam_runtime.clocks.places import by_place
from beam_runtime.errors import ClockError, ClockUnavailableError

if TYPE_CHECKING:
    from beam_runtime.clocks.nodes import LocalActuator


COMMAND_TIMEOUT_S = 5.0
# A set, and twice giving back what it did, at 1.5 s of silence each (zeusd_client.py).
ZEUSD_LIMIT_S = 6.0
# One GPU's lock by NVML: 7-35 ms (design/device-model.md), 200 ms at the longest seen. Three times
# that: who holds Python's lock for long delays what is told of a set, too.
LOCK_LIMIT_S = 0.6


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

    def open_releasers(self, *, all_of_them: bool = False) -> tuple[Releaser, ...]:
        """What gives the GPUs back: another node's together, this machine's each by itself.

        One that cannot be reached says so when it is to be released, and is in nobody's way;
        with ``all_of_them`` at once.

        Raises:
            ClockError: with ``all_of_them``, for one that cannot be reached.
        """
        from beam_runtime.clocks.zeusd_node import ZeusdNode

        releasers: list[Releaser] = []
        for one in self._places():
            if one.kind is ActuatorKind.NODE:
                releasers.append(ZeusdNode(tuple(map(str, one.gpus))))
            else:
                # A site of many GPUs in a file has them all there, or none.
                alone = one.kind is not ActuatorKind.FILE
                parts = [(gpu,) for gpu in one.gpus] if alone else [one.gpus]
                for part in parts:
                    here = replace(one, gpus=part)
                    releasers.append(here._open_local() if all_of_them else here._open_releaser())
        return tuple(releasers)

    @property
    def set_limit_s(self) -> float:
        """How long a set may take before it counts as hung.

        By NVML one GPU after the other; a daemon and a site's command have limits of their own.
        """
        gpus = max(1, len(self.gpus))
        match self.kind:
            case ActuatorKind.COMMAND:
                return 2 * gpus * COMMAND_TIMEOUT_S
            case ActuatorKind.ZEUSD:
                return ZEUSD_LIMIT_S
        on_nodes = ZEUSD_LIMIT_S if len(self._places()) > 1 else 0.0
        return on_nodes + LOCK_LIMIT_S + 0.2 * gpus

    @property
    def hang_s(self) -> float:
        """How long a set may go without moving on before it counts as hung.

        NVML's tells of each GPU (NvmlGpus.moved), so eight may not hang for longer than one: with
        what it takes to free them, their clocks are back in about a second (design/safety.md).
        """
        if self.kind is ActuatorKind.NVML and len(self._places()) == 1:
            return LOCK_LIMIT_S
        return self.set_limit_s

    def _open_releaser(self) -> Releaser:
        try:
            return self._open_local()
        except ClockError as error:
            return _Unreachable(tuple(map(str, self.gpus)), error)

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

    def on(self, gpus: Sequence[str]) -> Self:
        """The same way to set clocks, for these GPUs alone."""
        return replace(self, gpus=tuple(gpus))

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


class _Unreachable:
    """A GPU that fell off the bus, or whose driver is gone: said by whoever is to release it."""

    def __init__(self, gpus: tuple[str, ...], error: ClockError) -> None:
        self.gpus = gpus
        self._error = error

    def release(self, *, orphans: bool = False) -> None:
        """Raises what was found when it was opened."""
        raise self._error


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
