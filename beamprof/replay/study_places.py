"""Where cells are played: processes of this machine, or a Ray cluster. Both give the same rows.

A place takes one job for each free worker, so that a study that stops leaves little behind.
Processes are spawned, not forked: polars hangs in a child that was forked after it had read.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Any, Protocol

from beamprof.errors import ReplayError
from beamprof.replay.study_cells import Failure, Job, play_job

Outcome = dict[str, Any] | Failure


class On(StrEnum):
    """The kinds of places."""

    LOCAL = "local"
    RAY = "ray"


class Place(Protocol):
    """Where jobs are played."""

    workers: int

    def submit(self, job: Job) -> "Future[Outcome]":
        """Begin a job. Its future raises only where the worker itself was lost."""

    def close(self) -> None:
        """End the workers and what they play."""


def open_place(on: On, workers: int | None) -> Place:
    """A place with ``workers`` workers; None = one for each CPU that it may use.

    Raises:
        ReplayError: fewer than one worker, or Ray is not installed or cannot be reached.
    """
    if workers is not None and workers < 1:
        raise ReplayError(f"--workers must be 1 or more, found {workers}")
    return RayPlace(workers) if on is On.RAY else LocalPlace(workers)


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


class LocalPlace:
    """Spawned processes. They end with this one, however it ends."""

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or usable_cpus()
        self._context = multiprocessing.get_context("spawn")
        # Nobody ever writes: its other end closes when this process ends, even by kill -9.
        self._lifeline, self._held = self._context.Pipe(duplex=False)
        self._pool = self._new_pool()

    def submit(self, job: Job) -> "Future[Outcome]":
        """Begin a job, in new processes where one was lost."""
        with _interrupts_held_back():  # inherited: Ctrl-C is for this process to answer
            try:
                return self._pool.submit(play_job, job)
            except BrokenProcessPool:
                self._pool = self._new_pool()
                return self._pool.submit(play_job, job)

    def close(self) -> None:
        """End the workers at once."""
        self._held.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.workers, self._context, initializer=_end_with, initargs=(self._lifeline,)
        )


def _end_with(lifeline: Connection) -> None:
    """In a worker: end when the study does, also in the middle of a cell."""

    def wait() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


# A node that goes takes its cells with it: they are played once more elsewhere. A cell that kills
# its worker does so again, and is told.
RAY_RETRIES = 1


class RayPlace:
    """The Ray cluster that RAY_ADDRESS or this machine names, else one of this machine alone."""

    def __init__(self, workers: int | None) -> None:
        try:
            import ray
        except ImportError:
            raise ReplayError(
                "--on ray needs Ray, which is not installed here",
                hint="pip install 'beamprof[ray]'",
            ) from None
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            with _sigterm_kept():
                self._connect(workers)
        self.workers = workers or int(ray.cluster_resources().get("CPU", 1))
        self._play = ray.remote(max_retries=RAY_RETRIES)(play_job)

    def submit(self, job: Job) -> "Future[Outcome]":
        """Begin a job wherever a CPU is free."""
        future: Future[Outcome] = self._play.remote(job).future()
        return future

    def close(self) -> None:
        """Leave the cluster, which ends what is played for this study."""
        if self._ours:
            self._ray.shutdown()

    def _connect(self, workers: int | None) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        try:
            self._ray.init("auto", **quiet)
        except ConnectionError:
            # No cluster. One of our own, which reports to nobody.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            self._ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
        except (RuntimeError, ValueError, OSError) as error:
            raise ReplayError(
                "cannot join the Ray cluster",
                cause=str(error).splitlines()[0],
                hint="is RAY_ADDRESS right? Without it a cluster of this machine is started",
            ) from None


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray replaces the handler by one that ends this process before it has said what is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former: Any = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
