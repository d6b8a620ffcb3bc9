"""A replica over several nodes: this machine's GPUs and others', set and released together.

Every node is asked before any is waited for, so that the stages of a pipeline change their clock
at about the same time. If one fails, all are given back; one that does not answer keeps nobody
else locked, and stays on record until it has been (claims.py keeps a record for each node).

Only this machine's GPUs are read. Which clocks the others offer is taken from these, and they
must be of the same kind.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from beam_runtime.clocks.base import ClockActuator, ClockReading, all_or_none, check_supported
from beam_runtime.clocks.zeusd_node import ZeusdNode
from beam_runtime.errors import ClockError


class LocalActuator(ClockActuator, Protocol):
    """A ClockActuator of this machine."""

    def models(self) -> tuple[str, ...]:
        """The product name of each GPU. Raises ClockError."""
        ...


class AcrossNodes:
    """A ClockActuator over several machines.

    Args:
        local: this machine's GPUs.
        nodes: the others'.
    """

    def __init__(self, local: LocalActuator, nodes: Sequence[ZeusdNode]) -> None:
        self._local = local
        self._nodes = tuple(nodes)
        self._checked = False

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of this machine's, then the others as HOST:PORT/INDEX."""
        return (*self._local.gpus, *(gpu for node in self._nodes for gpu in node.gpus))

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """Those of this machine's GPUs, once the other nodes have said that theirs are alike.

        Raises:
            ClockUnavailableError, ClockPermissionError, ClockError: see ZeusdNode.check.
        """
        offered = self._local.supported_clocks_mhz()
        if not self._checked:
            models = tuple(dict.fromkeys(self._local.models()))
            for node in self._nodes:
                node.check(models)
            self._checked = True
        return offered

    def read_back(self) -> tuple[ClockReading, ...]:
        """Of this machine's GPUs: zeusd reads no clocks."""
        return self._local.read_back()

    def set(self, clock_mhz: int) -> None:
        """Lock all; if one fails, none stays locked that can be reached (see ClockActuator)."""
        check_supported(clock_mhz, self.supported_clocks_mhz())
        with all_or_none(self.release):
            _together(
                (partial(node.begin_set, clock_mhz) for node in self._nodes),
                partial(self._local.set, clock_mhz),
            )

    def release(self, *, orphans: bool = False) -> None:
        """Undo our locks, or with ``orphans`` any (see ClockActuator)."""
        _together(
            (partial(node.begin_release, orphans=orphans) for node in self._nodes),
            partial(self._local.release, orphans=orphans),
        )


def _together(
    begins: Iterable[Callable[[], Callable[[], object]]], own: Callable[[], None]
) -> None:
    """Ask every node, do one's own, wait for every answer; only then raise what went wrong."""
    failures: list[Exception] = []
    waits: list[Callable[[], object]] = []
    for begin in begins:
        try:
            waits.append(begin())
        except ClockError as error:
            failures.append(error)
    for do in (own, *waits):
        try:
            do()
        except Exception as error:  # whatever it is, the others are waited for
            failures.append(error)
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"and: {other}")
        raise failures[0]
