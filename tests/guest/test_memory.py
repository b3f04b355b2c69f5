# SPDX-License-Identifier: Apache-2.0
"""Guest memory: regions, addresses, seals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vmq.guest.memory import PAGE, Memory, adjacent


@pytest.fixture
def holey():
    """Two adjacent regions, a hole, a third."""
    memory = Memory([(0, 2 * PAGE), (2 * PAGE, PAGE), (16 * PAGE, PAGE)])
    yield memory
    memory.close()


def test_adjacent_regions_cover_the_total():
    assert adjacent(10 * PAGE + 1, 3) == [(0, 4 * PAGE), (4 * PAGE, 4 * PAGE), (8 * PAGE, 4 * PAGE)]


def test_write_across_adjacent_regions_is_read_back(holey):
    data = bytes(range(200))
    holey.write(2 * PAGE - 100, data)
    assert holey.read(2 * PAGE - 100, 200) == data


@pytest.mark.parametrize(
    ("guest", "size"), [(3 * PAGE - 1, 2), (3 * PAGE, 1), (17 * PAGE, 1), (-1, 1), (2**63, 1)]
)
def test_what_is_not_guest_memory_has_no_address(holey, guest, size):
    with pytest.raises(ValueError, match="not guest memory"):
        holey.own(guest, size)


def test_regions_stand_in_the_file_in_their_order(holey):
    assert [(region.guest, region.offset) for region in holey.regions] == [
        (0, 0),
        (2 * PAGE, 2 * PAGE),
        (16 * PAGE, 3 * PAGE),
    ]
    first = holey.regions[0]
    assert all(region.own - first.own == region.offset for region in holey.regions)


def test_allocation_spans_adjacent_regions_but_no_hole(holey):
    spanning = holey.allocate(PAGE + 64, PAGE)
    beyond = holey.allocate(PAGE, PAGE)
    assert (spanning, beyond) == (PAGE, 16 * PAGE)


def test_allocation_within_a_region_does_not_cross_its_end(holey):
    holey.allocate(PAGE - 64, PAGE)
    assert holey.allocate(128, within_region=True) == 2 * PAGE


def test_page_0_is_nobody_s(holey):
    assert holey.allocate(1) >= PAGE


def test_exhausted_memory_says_so(holey):
    with pytest.raises(MemoryError):
        holey.allocate(4 * PAGE)


def test_sealed_memory_cannot_shrink(holey):
    with pytest.raises(PermissionError):
        holey.truncate(PAGE)


def test_unsealed_memory_can_shrink():
    memory = Memory([(0, 2 * PAGE)], sealed=False)
    memory.truncate(PAGE)
    memory.close()


def test_view_outlives_close(holey):
    view: Any = holey.array(0, 4, np.uint32)
    holey.close()
    view[0] = 7
    assert view[0] == 7
