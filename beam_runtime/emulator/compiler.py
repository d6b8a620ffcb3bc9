"""The compiler: the only place that imports numba.

The functions of this room and of search/ are plain Python over named fields. Compiled they take
nanoseconds per request; with NUMBA_DISABLE_JIT=1 they run as they stand.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

_LOG = logging.getLogger("beam_runtime")

Function = TypeVar("Function", bound=Callable[..., object])

COMPILES = not numba.config.DISABLE_JIT

# numpy's error model: the rules rule out divisions by zero, so no branch for them. No reference
# counting (``_nrt``): nothing here allocates, and counting references to every array at every
# call takes ten times as long as the work itself.
_OPTIONS = {"error_model": "numpy", "_nrt": False}


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """A function's code, left for the entry that it becomes part of to optimize and translate.

    numba does both for every function with all that it calls, so that the innermost is done once
    for each level above it: most of the time that compiling takes.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """None: nobody calls it by itself."""
        return 0

    @property
    def codegen(self) -> Any:
        """Where numba would tell a function its Python environment, which none of ours has."""
        return SimpleNamespace(set_env=lambda name, env: None)


class _PartCompiler(Compiler):  # type: ignore[misc]
    """numba's own, with _Part as the library."""

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


def compiled(function: Function) -> Function:
    """For compiled callers only: there is no way in from Python."""
    inner: Function = numba.njit(
        no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PartCompiler, **_OPTIONS
    )(function)
    return inner


def merged(function: Function) -> Function:
    """As compiled, and made part of each caller by LLVM: for what is called many times a step.

    A call hands over every array's shape and strides, ninety numbers: that took half of a play.
    """
    part: Function = numba.njit(
        no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PartCompiler,
        forceinline=True, **_OPTIONS,
    )(function)  # fmt: skip
    return part


def inlined(function: Function) -> Function:
    """Compiled as part of its caller: a record cannot be returned."""
    part: Function = numba.njit(inline="always", **_OPTIONS)(function)
    return part


def entry(function: Function) -> Function:
    """Called from Python: compiled with all it calls, kept on disk, and run without the GIL.

    The engine's thread goes on while a search runs on its own.
    """
    return _kept_on_disk(function, numba.njit(nogil=True, **_OPTIONS)(function))


def brief_entry(function: Function) -> Function:
    """The same for microseconds, with the GIL: giving it up may mean waiting to have it back."""
    return _kept_on_disk(function, numba.njit(**_OPTIONS)(function))


def _kept_on_disk(function: Function, outer: Any) -> Function:
    if COMPILES:
        _with_cache_folder(lambda: setattr(outer, "_cache", _PackageCache(function)))
    entered: Function = outer
    return entered


class NotKeptError(Exception):
    """An entry whose machine code is not on disk was called where nothing may be compiled."""


_may_compile = ContextVar("_may_compile", default=True)


@contextmanager
def from_disk_only() -> Iterator[None]:
    """In this block and thread nothing is compiled: what is not on disk raises NotKeptError."""
    before = _may_compile.set(False)
    try:
        yield
    finally:
        _may_compile.reset(before)


class _PackageCache(FunctionCache):  # type: ignore[misc]
    """Machine code on disk, good for these sources.

    numba alone asks only whether the entry's own file changed, not the files of what it calls.
    """

    def load_overload(self, sig: object, target_context: object) -> object:
        found: object = super().load_overload(sig, target_context)
        if found is None and not _may_compile.get():
            raise NotKeptError(self._name)
        return found

    def _index_key(self, sig: object, codegen: object) -> tuple[object, ...]:
        return (*super()._index_key(sig, codegen), _sources())


def _sources() -> str:
    package = Path(__file__).parents[1]
    files: list[Path] = []
    for room in ("types", "emulator", "search"):
        files += sorted((package / room).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _with_cache_folder(keep: Callable[[], None]) -> None:
    """Where neither the package nor HOME can be written to, a temporary folder takes the code.

    NUMBA_CACHE_DIR tells it to child processes, too.
    """
    try:
        keep()
    except RuntimeError:  # numba: no locator available
        folder = _temporary_folder()
        os.environ["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR = folder
        _LOG.warning(
            "no folder to keep compiled code in can be written to: %s is used; "
            "set NUMBA_CACHE_DIR to a lasting one", folder,
        )  # fmt: skip
        keep()


def _temporary_folder() -> str:
    """One for this user, or, where somebody else could have filled that, a new one."""
    shared = Path(tempfile.gettempdir()) / f"beam-compiled-{os.getuid()}"
    try:
        shared.mkdir(mode=0o700, exist_ok=True)
        status = shared.lstat()
        if status.st_uid == os.getuid() and status.st_mode & 0o170077 == 0o040000:
            return str(shared)
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="beam-compiled-")
