# SPDX-License-Identifier: Apache-2.0
"""Layouts are checked where they are declared."""

from __future__ import annotations

import numpy as np
import pytest

from vmq.abi.layout import layout, offset, packed, rows, u8, u16, u32, u64


def test_layout_follows_c_alignment() -> None:
    made = layout(16, ("a", u8), ("b", u16), ("c", u32), ("d", u64))

    assert [offset(made, name) for name in "abcd"] == [0, 2, 4, 8]


def test_wrong_size_is_refused_when_the_module_is_imported() -> None:
    """The check is a raise: `python -O` removes assertions."""
    with pytest.raises(TypeError, match="has 8 bytes, declared 7"):
        layout(7, ("a", u32), ("b", u16))


def test_packed_has_no_padding() -> None:
    assert offset(packed(12, ("a", u32), ("b", u64)), "b") == 4


def test_rows_fill_whole_cache_lines() -> None:
    """Two rows with two owners never share a line."""
    assert rows(("a", u64)).itemsize == 64
    assert rows(("a", u64, (9,))).itemsize == 128
    assert rows(("a", u64, (8,))).names == ("a",)


def test_offset_of_a_plain_type_is_an_error() -> None:
    with pytest.raises(TypeError, match="no fields"):
        offset(np.dtype(np.int64), "a")
