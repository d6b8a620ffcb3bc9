"""The compiler: the only place that imports numba."""

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile on the first call and keep the machine code on disk.

    numpy's error model: the rules rule out divisions by zero, so no branch for them. Without
    numba's reference counting (``_nrt``): nothing here allocates, and counting references to
    every array at every call takes ten times as long as the work itself.
    """
    fast: Function = numba.njit(cache=True, error_model="numpy", _nrt=False)(function)
    return fast
