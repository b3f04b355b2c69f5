# SPDX-License-Identifier: Apache-2.0
"""The product's kernels with a few of their parts exchanged: for a measurement only, and without a word of theirs changed.

    rebuilt(all_rounds, {copy_short: nothing})     the same code, compiled again, in which no frame is copied

A kernel finds what it calls in the globals of its module. So a function made of the same code with other globals calls
other functions, and so does everything on the way down to the one that is exchanged; what lies beside that way is the
product's own, compiled as it always is.
"""

from __future__ import annotations

import types
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vmq.jit import kernel, python_of

Function = Callable[..., Any]


def rebuilt(function: Function, instead: Mapping[Function, Function]) -> Any:
    """`function`, calling others `instead` of some, however deep; itself if it calls none of them."""
    return _Rebuilder(instead).of(function)


class _Rebuilder:
    def __init__(self, instead: Mapping[Function, Function]) -> None:
        self._instead = instead
        self._made: dict[Function, Function] = {}
        texts = {python_of(one).__code__.co_filename for one in instead.values()}
        names = sorted(f"{python_of(old).__name__}:{python_of(new).__name__}" for old, new in instead.items())
        text = "".join([*names, *(Path(one).read_text() for one in sorted(texts))])
        self._tag = f"{zlib.crc32(text.encode()):x}"  # of a compiled function's place in the cache

    def of(self, function: Function) -> Function:
        if function in self._instead:
            return self._instead[function]
        if function not in self._made:
            self._made[function] = function  # of one that calls itself
            self._made[function] = self._build(function)
        return self._made[function]

    def _build(self, function: Function) -> Function:
        source = python_of(function)
        changed = {}
        for name in source.__code__.co_names:
            called = source.__globals__.get(name)
            if _is_kernel(called) and (other := self.of(called)) is not called:
                changed[name] = other
        if not changed:
            return function
        fresh = types.FunctionType(source.__code__, source.__globals__ | changed, source.__name__)
        fresh.__qualname__ = f"{source.__qualname__}_{self._tag}"
        fresh.__module__ = source.__module__
        return kernel(fresh)


def _is_kernel(value: object) -> bool:
    """Whether a global is a function, compiled or not, and nobody else's."""
    source = python_of(value)
    foreign = ("numpy", "numba", "ctypes")
    return isinstance(source, types.FunctionType) and not (source.__module__ or "").startswith(foreign)
