"""Which way to set clocks on this machine, and why that one.

a command was given        -> command
CAP_SYS_ADMIN is effective -> NVML itself
zeusd's socket is there    -> zeusd
otherwise                  -> none: clocks stay as they are, the other knobs still turn

GPUs of other nodes (places.py) are always set through the zeusd there, beside this machine's.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beam_runtime.clocks.nvml_errors import WAYS_OUT
from beam_runtime.clocks.places import by_place
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.zeusd import DEFAULT_SOCKETS, SOCKET_VARIABLE

_CAP_SYS_ADMIN = 21  # capability.h


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to set clocks and the reason for it, one line to be printed once."""

    spec: ActuatorSpec
    reason: str

    def __str__(self) -> str:
        if self.spec.kind is ActuatorKind.NONE:
            return f"clocks stay as they are: {self.reason}"
        nodes = ", ".join(address for address in by_place(self.spec.gpus) if address)
        others = f"; those of other nodes through zeusd at {nodes}" if nodes else ""
        return f"clocks through {self.spec.kind}: {self.reason}{others}"


def choose_actuator(
    gpus: Sequence[str | int],
    *,
    set_command: Sequence[str] = (),
    release_command: Sequence[str] = (),
    proc_status: Path = Path("/proc/self/status"),
) -> Choice:
    """Choose a way without trying it: nothing is set, nothing is opened.

    Args:
        gpus: the replica's GPUs, by UUID or NVML index, or on other nodes; none means no clocks.
        set_command: a site's own command as an argv template, see clocks.command.
        release_command: its counterpart.
        proc_status: where the kernel tells this process's capabilities.
    """
    names = tuple(gpus)
    if not names:
        return Choice(ActuatorSpec(ActuatorKind.NONE), "no GPU was named")
    if set_command:
        spec = ActuatorSpec(
            ActuatorKind.COMMAND,
            names,
            set_command=tuple(set_command),
            release_command=tuple(release_command),
        )
        return Choice(spec, f"{set_command[0]} was given for it")
    if may_lock_clocks(proc_status):
        return Choice(ActuatorSpec(ActuatorKind.NVML, names), "this process has CAP_SYS_ADMIN")
    places = zeusd_places()
    socket_path = next(filter(_usable_socket, places), None)
    if socket_path is not None:
        spec = ActuatorSpec(ActuatorKind.ZEUSD, names, socket=socket_path)
        return Choice(spec, f"no CAP_SYS_ADMIN, but zeusd's socket is at {socket_path}")
    reason = f"no CAP_SYS_ADMIN and no zeusd socket at {' or '.join(places)}; {WAYS_OUT}"
    return Choice(ActuatorSpec(ActuatorKind.NONE), reason)


def zeusd_places() -> tuple[str, ...]:
    """Where a zeusd's socket is looked for."""
    named = os.environ.get(SOCKET_VARIABLE)
    return (named,) if named else DEFAULT_SOCKETS


def may_lock_clocks(proc_status: Path = Path("/proc/self/status")) -> bool:
    """Whether the driver will let this process lock clocks.

    The driver asks for CAP_SYS_ADMIN; uid 0 alone, as in a plain container, is not enough.
    """
    try:
        lines = proc_status.read_text(encoding="ascii").splitlines()
    except OSError:
        return os.geteuid() == 0
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    try:
        return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)
    except ValueError:
        return False


def _usable_socket(path: str) -> bool:
    try:
        is_socket = stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
    return is_socket and os.access(path, os.R_OK | os.W_OK)
