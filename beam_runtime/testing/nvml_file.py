"""A stand-in for pynvml whose GPUs live in a file: several processes see the same board.

    board = FileBoard.create(folder, gpus=2)          # in a test
    subprocess.Popen(..., env=os.environ | board.env)  # there, ``import pynvml`` finds these GPUs
    board.script("nvmlDeviceSetGpuLockedClocks", code=999, times=1)
    board.locked()

What is locked stays locked when a process dies, as on a real board. Errors, delays and calls that
never return come by script; energy counters tick with the time, wrap and can be reset; a GPU can
throttle, idle or fall off the bus. Every set and reset is kept with the process that did it.
"""

# ruff: noqa: D102, N802 - NVML's names, described by NVML

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from beam_runtime.testing.nvml import FakeNvmlError, FakePciInfo, FakeProcess

VARIABLE = "BEAM_FAKE_NVML"
MODULE = """from beam_runtime.testing.nvml_file import FileNvml, VARIABLE
import os
_nvml = FileNvml(os.environ[VARIABLE])
def __getattr__(name): return getattr(_nvml, name)
"""
_CLOCKS_MHZ = tuple(range(1410, 209, -15))
_IDLE_MHZ, _IDLE, _POWER_CAP = 210, 0x001, 0x004
_LOST, _NOT_FOUND, _INVALID = 15, 6, 2
_FOR_EVER_S = 3600.0

State = dict[str, Any]


class FileBoard:
    """The board, as a test sees and changes it.

    Args:
        path: its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, folder: Path, gpus: int = 1, name: str = "NVIDIA A100-SXM4-80GB") -> Self:
        """Write a board of free GPUs into ``folder``, and a module pynvml beside it."""
        board = cls(folder / "board.json")
        state: State = {
            "gpus": [
                {
                    "uuid": f"GPU-{at}", "name": name, "lock_mhz": None, "reasons": 0,
                    "idle": False, "throttled_mhz": None, "lost": False, "power_mw": 90_000,
                    "temperature_c": 45, "tick_s": 0.1, "zero_s": time.time(), "wrap_mj": None,
                    "settle_s": 0.0, "set_s": 0.0, "before_mhz": None, "processes": [],
                }
                for at in range(gpus)
            ],
            "script": [],
        }  # fmt: skip
        board.path.write_text(json.dumps(state), encoding="utf-8")
        board._history.touch()
        (folder / "pynvml.py").write_text(MODULE, encoding="utf-8")
        return board

    @property
    def env(self) -> dict[str, str]:
        """What makes a process of its own see these GPUs."""
        before = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(self.path.parent), *([before] if before else [])])
        return {VARIABLE: str(self.path), "PYTHONPATH": path}

    def locked(self) -> dict[str, int]:
        """The GPUs that are locked, and where."""
        with self.state() as state:
            return {g["uuid"]: g["lock_mhz"] for g in state["gpus"] if g["lock_mhz"] is not None}

    def change(self, gpu: int, **fields: object) -> None:
        """Let something happen to a GPU: lost=True, throttled_mhz=900, zero_s=time.time(), ..."""
        with self.state() as state:
            unknown = set(fields) - set(state["gpus"][gpu])
            if unknown:
                raise KeyError(*unknown)
            state["gpus"][gpu].update(fields)

    def script(
        self,
        function: str,
        *,
        code: int = 0,
        delay_s: float = 0.0,
        gpu: int | None = None,
        times: int = 1 << 30,
        pid: int | None = None,
    ) -> None:
        """Let ``function`` be slow, and then fail, so many times, for one GPU or process or all."""
        with self.state() as state:
            state["script"].append(
                {"function": function, "code": code, "delay_s": delay_s, "gpu": gpu,
                 "times": times, "pid": pid}
            )  # fmt: skip

    def hang(self, function: str, **only: int) -> None:
        """Let ``function`` not return."""
        self.script(function, delay_s=_FOR_EVER_S, **only)

    def unscript(self) -> None:
        """From now on all goes well."""
        with self.state() as state:
            state["script"].clear()

    def history(self) -> list[dict[str, Any]]:
        """Every set and reset: time_s, pid, ppid, gpu, clock_mhz (None: a reset), before_mhz."""
        lines = self._history.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def note(self, entry: State) -> None:
        with self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @contextmanager
    def state(self) -> Iterator[State]:
        """The whole state, alone; written back."""
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = self.path.read_text(encoding="utf-8")
            state = json.loads(text)
            yield state
            after = json.dumps(state)
            if after != text:
                temporary = self.path.with_suffix(".tmp")
                temporary.write_text(after, encoding="utf-8")
                temporary.replace(self.path)

    @property
    def _history(self) -> Path:
        return self.path.with_suffix(".history")


class FileNvml:
    """The module pynvml over such a board. A handle is the GPU's index.

    Args:
        path: the board's file.
    """

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0
    __version__ = "fake"

    def __init__(self, path: str | Path) -> None:
        self._board = FileBoard(Path(path))

    def nvmlInit(self) -> None:
        with self._asked("nvmlInit"):
            pass

    def nvmlShutdown(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.03"

    def nvmlDeviceGetCount(self) -> int:
        with self._asked("nvmlDeviceGetCount") as state:
            return len(state["gpus"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        with self._asked("nvmlDeviceGetHandleByIndex") as state:
            if not 0 <= index < len(state["gpus"]):
                raise FakeNvmlError(_INVALID)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        with self._asked("nvmlDeviceGetHandleByUUID") as state:
            for at, gpu in enumerate(state["gpus"]):
                if gpu["uuid"] == uuid:
                    return at
        raise FakeNvmlError(_NOT_FOUND)

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        self._of("nvmlDeviceGetIndex", handle)
        return handle

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return str(self._of("nvmlDeviceGetUUID", handle)["uuid"])

    def nvmlDeviceGetName(self, handle: int) -> str:
        return str(self._of("nvmlDeviceGetName", handle)["name"])

    def nvmlDeviceGetPciInfo(self, handle: int) -> FakePciInfo:
        self._of("nvmlDeviceGetPciInfo", handle)
        return FakePciInfo(f"00000000:{0x10 + handle:02X}:00.0")

    def nvmlDeviceGetSupportedMemoryClocks(self, handle: int) -> list[int]:
        self._of("nvmlDeviceGetSupportedMemoryClocks", handle)
        return [1593]

    def nvmlDeviceGetSupportedGraphicsClocks(self, handle: int, memoryClockMHz: int) -> list[int]:
        self._of("nvmlDeviceGetSupportedGraphicsClocks", handle)
        return list(_CLOCKS_MHZ)

    def nvmlDeviceSetGpuLockedClocks(
        self, handle: int, minGpuClockMHz: int, maxGpuClockMHz: int
    ) -> None:
        with self._asked("nvmlDeviceSetGpuLockedClocks", handle) as state:
            self._lock(state, handle, maxGpuClockMHz)

    def nvmlDeviceResetGpuLockedClocks(self, handle: int) -> None:
        with self._asked("nvmlDeviceResetGpuLockedClocks", handle) as state:
            self._lock(state, handle, None)

    def nvmlDeviceGetClockInfo(self, handle: int, type: int) -> int:  # noqa: A002
        gpu = self._of("nvmlDeviceGetClockInfo", handle)
        if gpu["idle"]:
            return _IDLE_MHZ
        lagging = time.time() < gpu["set_s"] + gpu["settle_s"]
        clock_mhz = (gpu["before_mhz"] if lagging else gpu["lock_mhz"]) or _CLOCKS_MHZ[0]
        return int(min(clock_mhz, gpu["throttled_mhz"] or clock_mhz))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        gpu = self._of("nvmlDeviceGetCurrentClocksEventReasons", handle)
        bits = int(gpu["reasons"]) | (_IDLE if gpu["idle"] else 0)
        return bits | (_POWER_CAP if gpu["throttled_mhz"] and not gpu["reasons"] else 0)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        gpu = self._of("nvmlDeviceGetTotalEnergyConsumption", handle)
        ticks = int((time.time() - gpu["zero_s"]) / gpu["tick_s"])
        energy_mj = int(ticks * gpu["tick_s"] * gpu["power_mw"])
        return energy_mj % gpu["wrap_mj"] if gpu["wrap_mj"] else energy_mj

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return int(self._of("nvmlDeviceGetPowerUsage", handle)["power_mw"])

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        self._of("nvmlDeviceGetEnforcedPowerLimit", handle)
        return 400_000

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return int(self._of("nvmlDeviceGetTemperature", handle)["temperature_c"])

    def nvmlDeviceGetPersistenceMode(self, handle: int) -> int:
        self._of("nvmlDeviceGetPersistenceMode", handle)
        return 1

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[FakeProcess]:
        gpu = self._of("nvmlDeviceGetComputeRunningProcesses", handle)
        return [FakeProcess(pid) for pid in gpu["processes"]]

    def _lock(self, state: State, handle: int, clock_mhz: int | None) -> None:
        gpu = state["gpus"][handle]
        now_s = time.time()
        self._board.note(
            {
                "time_s": now_s,
                "pid": os.getpid(),
                "ppid": os.getppid(),
                "gpu": handle,
                "clock_mhz": clock_mhz,
                "before_mhz": gpu["lock_mhz"],
            }
        )
        gpu.update(before_mhz=gpu["lock_mhz"], lock_mhz=clock_mhz, set_s=now_s)

    def _of(self, function: str, handle: int) -> State:
        with self._asked(function, handle) as state:
            gpu: State = state["gpus"][handle]
            return gpu

    @contextmanager
    def _asked(self, function: str, handle: int | None = None) -> Iterator[State]:
        """The state, once whatever was scripted has happened. A delay keeps nobody else waiting."""
        code = self._scripted(function, handle)
        if code:
            raise FakeNvmlError(code)
        with self._board.state() as state:
            if handle is not None and state["gpus"][handle]["lost"]:
                raise FakeNvmlError(_LOST)
            yield state

    def _scripted(self, function: str, handle: int | None) -> int:
        delay_s, code = 0.0, 0
        with self._board.state() as state:
            for entry in state["script"]:
                meant = entry["gpu"] in (None, handle) and entry["pid"] in (None, os.getpid())
                if entry["function"] == function and meant and entry["times"] > 0:
                    entry["times"] -= 1
                    delay_s, code = entry["delay_s"], entry["code"]
                    break
        time.sleep(delay_s)
        return int(code)
