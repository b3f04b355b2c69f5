# SPDX-License-Identifier: Apache-2.0
"""How every memory layout is declared: once, with its size, checked when the module is imported.

`layout(size, (name, type), …)` follows C's rules of alignment and raises when the size differs from the one the
specification (or our own table) names. `packed` is for the few kernel structures without padding. A field is
`(name, type)` or `(name, type, count)`; its offset is written nowhere else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i16, i32, i64 = np.int16, np.int32, np.int64


def _checked(size: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.itemsize != size:
        raise TypeError(f"layout of {dtype.names} has {dtype.itemsize} bytes, declared {size}")
    return dtype


def layout(size: int, *fields: tuple[Any, ...]) -> np.dtype[Any]:
    """A structure with C alignment of exactly `size` bytes."""
    return _checked(size, np.dtype(list(fields), align=True))


def packed(size: int, *fields: tuple[Any, ...]) -> np.dtype[Any]:
    """A structure without padding of exactly `size` bytes."""
    return _checked(size, np.dtype(list(fields)))


def rows(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    """A table row of our own: C alignment, padded to whole cache lines, so that two owners never share one."""
    size = np.dtype(list(fields), align=True).itemsize
    padding = -size % 64
    return np.dtype([*fields, ("padding", u8, (padding,))] if padding else list(fields), align=True)


def offset(dtype: np.dtype[Any], name: str) -> int:
    """Where a field of a declared layout begins, in bytes."""
    fields = dtype.fields
    if fields is None:
        raise TypeError(f"{dtype} has no fields")
    return int(fields[name][1])
