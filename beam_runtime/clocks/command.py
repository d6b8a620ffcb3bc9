"""Clocks through a site's own command, where only a blessed script may lock them.

    set      ("sudo", "/opt/site/lock-clock", "{gpu}", "{clock_mhz}")
    release  ("sudo", "/opt/site/free-clock", "{gpu}")

Each runs once per GPU, without a shell. {gpu} is the UUID, {index} NVML's index. Reading needs
no rights and goes to NVML directly.

A command outlives whoever started it. While one is under way it keeps a file lock of its GPU's,
handed to it as its standard input, which sudo passes on, too: so the next command on that GPU,
whoever starts it, waits for it, and a release comes after the set that it undoes.
"""

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from beam_runtime.clocks.base import all_or_none, check_supported
from beam_runtime.clocks.broken_pipes import as_programs_expect
from beam_runtime.clocks.file_lock import file_lock
from beam_runtime.clocks.gpu_identity import GpuIdentity
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.nvml_reader import NvmlReader
from beam_runtime.clocks.spec import COMMAND_TIMEOUT_S
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.printable import one_line

TIMEOUT_S = COMMAND_TIMEOUT_S


class CommandGpus(NvmlReader):
    """A ClockActuator that runs commands.

    Args:
        gpus: the same GPUs through NVML, for reading.
        set_command, release_command: argv templates.
        folder: where the GPUs' file locks are; the state folder by default.

    Raises:
        ClockUnavailableError: a template is empty, or lacks the GPU or the clock.
    """

    def __init__(
        self,
        gpus: NvmlGpus,
        set_command: Sequence[str],
        release_command: Sequence[str],
        folder: Path | None = None,
    ) -> None:
        _check(set_command, "set", needs_clock=True)
        _check(release_command, "release", needs_clock=False)
        super().__init__(gpus)
        self._set_command = tuple(set_command)
        self._release_command = tuple(release_command)
        self._state = StateFile(folder)
        self._touched: set[GpuIdentity] = set()

    def set(self, clock_mhz: int) -> None:
        """Lock every GPU; if one fails, none stays locked (see ClockActuator)."""
        check_supported(clock_mhz, self.supported_clocks_mhz())
        with all_or_none(self.release):
            for gpu in self._nvml.identities():
                self._touched.add(gpu)
                self._run(self._set_command, gpu, clock_mhz)

    def release(self, *, orphans: bool = False) -> None:
        """Free the GPUs locked here, or with ``orphans`` all of them (see ClockActuator)."""
        failures = []
        for gpu in self._nvml.identities():
            if gpu not in self._touched and not orphans:
                continue
            try:
                self._run(self._release_command, gpu, None)
                self._touched.discard(gpu)
            except ClockError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _run(self, template: Sequence[str], gpu: GpuIdentity, clock_mhz: int | None) -> None:
        """Run it once nothing else is under way for this GPU.

        What does not end is not waited for without end: a release is run all the same, and is
        an error then, so that it is run again.
        """
        unended: ClockError | None = None
        with ExitStack() as held:
            stdin = subprocess.DEVNULL
            try:
                mode = self._state.prepare()
                path = self._state.folder / f"command-{quote(gpu.uuid, safe='')}.lock"
                stdin = held.enter_context(file_lock(path, timeout_s=TIMEOUT_S, mode=mode))
            except ClockError as error:
                if clock_mhz is not None:
                    raise
                unended = error
            _run([_filled(part, gpu, clock_mhz) for part in template], stdin)
        if unended is not None:
            raise unended


def _run(argv: Sequence[str], stdin: int) -> None:
    try:
        with as_programs_expect():
            done = subprocess.run(
                argv,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=TIMEOUT_S,
                check=False,
            )
    except FileNotFoundError as error:
        raise ClockUnavailableError(f"no command {argv[0]}", cause=str(error)) from error
    except PermissionError as error:
        raise ClockPermissionError(f"may not run {argv[0]}", cause=str(error)) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClockError(f"{' '.join(argv)} did not end well", cause=str(error)) from error
    if done.returncode != 0:
        raise ClockError(
            f"{' '.join(argv)} failed",
            cause=f"exit {done.returncode}: {one_line(done.stderr.decode(errors='replace'))}",
            hint="run it by hand to see why",
        )


def _filled(part: str, gpu: GpuIdentity, clock_mhz: int | None) -> str:
    # Not str.format: a template may hold braces of its own.
    part = part.replace("{gpu}", gpu.uuid).replace("{index}", str(gpu.index))
    return part.replace("{clock_mhz}", str(clock_mhz))


def _check(template: Sequence[str], name: str, *, needs_clock: bool) -> None:
    text = " ".join(template)
    missing = [] if "{gpu}" in text or "{index}" in text else ["{gpu} or {index}"]
    if needs_clock and "{clock_mhz}" not in text:
        missing.append("{clock_mhz}")
    if missing:
        raise ClockUnavailableError(
            f"the {name} command lacks {' and '.join(missing)}",
            cause=text or "it is empty",
            hint="for example: sudo /opt/site/lock-clock {gpu} {clock_mhz}",
        )
