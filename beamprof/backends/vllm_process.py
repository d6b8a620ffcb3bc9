"""A vLLM engine in a child process, and the passes it runs: the near end of vllm_engine.

A process of its own because vLLM allows one engine per process, forks and spawns as it likes, and
must be gone when the sweep is: the child is killed with its children on close, and ends by
itself when this process is killed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from beam_runtime.types import StepShape
from beamprof.backends.vllm_cells import Craft, craft
from beamprof.errors import BackendError

CLOSE_S = 20.0
_TAIL_BYTES = 20_000

# Nothing is fetched or reported; what the user has set goes before these.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Decodes at the longest context grow a little beyond it (vllm_cells).
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class VllmProcess:
    """A PassRunner (pass_timing) on a vLLM engine of its own.

    Args:
        options: model, layers, tp, dtype, max_model_len, max_batched_tokens, max_seqs,
            max_positions, clock, and ``more`` arguments of vllm.LLM, as vllm_engine reads them.
        environment: on top of this process's own.

    Raises:
        BackendError: vLLM does not start, or lacks something; its own words are the cause.
    """

    runs_ahead = True

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._waiting = 0
        self._gaps_ms: deque[float] = deque(maxlen=10_000)
        self._wall_ms = 0.0
        self._steps = 0
        self._process: subprocess.Popen[str] | None = subprocess.Popen(
            [sys.executable, "-m", "beamprof.backends.vllm_engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **_ENVIRONMENT,
                **os.environ,
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                **environment,
            },
            start_new_session=True,  # Ctrl-C is for the sweep, which finishes its cell
        )
        try:
            self._tell(options)
            self.report = self._hear()
        except BaseException:
            self.close()
            raise

    # A PassRunner

    def prepare(self, step: StepShape) -> None:
        """Make a step's pass the one to run. BackendError if it does not fit."""
        crafted: Craft = craft(step)
        self._collect_all()
        self._gaps_ms.clear()
        self._wall_ms, self._steps = 0.0, 0
        self._tell({"do": "prepare", "craft": asdict(crafted)})
        self._hear()

    def enqueue(self, passes: int) -> None:
        """Order so many passes."""
        self._tell({"do": "run", "passes": passes})
        self._waiting += 1

    def collect(self) -> list[float]:
        """Wait for the oldest passes ordered; milliseconds of each."""
        self._waiting -= 1
        answer = self._hear()
        self._gaps_ms.extend(answer["gap_ms"])
        self._wall_ms += answer["wall_ms"]
        self._steps += answer["steps"]
        passes: list[float] = answer["pass_ms"]
        return passes

    @property
    def gap_ms(self) -> float:
        """Median host time between two passes since prepare."""
        return median(self._gaps_ms) if self._gaps_ms else 0.0

    @property
    def step_ms(self) -> float:
        """Mean wall time of a step since prepare, gaps and admissions included."""
        return self._wall_ms / self._steps if self._steps else 0.0

    def close(self) -> None:
        """End the process and its children. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
            process.communicate(timeout=0 if self._waiting else CLOSE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, self._log):
            with contextlib.suppress(OSError):  # an order that nobody was there to read
                stream.close()  # type: ignore[union-attr]

    # The line

    def _collect_all(self) -> None:
        """A cell that failed halfway may have left answers unread."""
        while self._waiting:
            self._waiting -= 1
            with contextlib.suppress(BackendError):
                self._hear()

    def _tell(self, order: Mapping[str, Any]) -> None:
        process = self._running()
        try:
            process.stdin.write(json.dumps(order) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        except OSError:
            raise self._gone() from None

    def _hear(self) -> dict[str, Any]:
        line = self._running().stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            raise BackendError(error["message"], cause=error["cause"], hint=error["hint"])
        return answer

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None:
            raise BackendError("the vllm backend is not open", hint="call open() first")
        return self._process

    def _gone(self) -> BackendError:
        """The child has died: its last words."""
        self._log.seek(max(0, os.fstat(self._log.fileno()).st_size - _TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return BackendError(
            "vLLM's process has ended",
            cause=" | ".join(lines[-3:]) or "it said nothing",
            hint="VLLM_LOGGING_LEVEL=INFO makes it say more; --backend torch needs no vLLM",
        )
