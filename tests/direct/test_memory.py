# SPDX-License-Identifier: Apache-2.0
"""All memory of a guest as one piece: each file once, regions where they lie in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.direct.holes import punch
from vmq import linux
from vmq.direct.memory import GuestMemory, identity
from vmq.jit import at
from vmq.vhost.message import Region

PAGE = linux.PAGE


@pytest.fixture
def files() -> Iterator[list[int]]:
    made = [os.memfd_create(name) for name in ("one", "two")]
    for number, descriptor in enumerate(made):
        os.ftruncate(descriptor, (number + 3) * PAGE)
        os.pwrite(descriptor, bytes([number + 1]) * 16, PAGE)
    yield made
    for descriptor in made:
        os.close(descriptor)


def test_regions_of_one_file_share_its_place_and_files_follow_each_other(files: list[int]) -> None:
    one, two = files
    regions = (
        Region(0, PAGE, 0, 0, one),
        Region(1 << 32, 2 * PAGE, 0, PAGE, one),
        Region(1 << 20, 4 * PAGE, 0, 0, two),
    )
    memory = GuestMemory(regions)
    assert memory.size == 7 * PAGE
    spans = {int(row["guest"]): (int(row["size"]), int(row["place"])) for row in memory.spans}
    assert spans == {0: (PAGE, 0), 1 << 32: (2 * PAGE, PAGE), 1 << 20: (4 * PAGE, 3 * PAGE)}
    whole = at(memory.address, memory.size, np.uint8)
    assert (bytes(whole[PAGE : PAGE + 16]), bytes(whole[4 * PAGE : 4 * PAGE + 16])) == (
        b"\1" * 16,
        b"\2" * 16,
    )
    whole[2 * PAGE] = 7
    assert os.pread(one, 1, 2 * PAGE) == b"\7"
    del whole
    memory.close()
    memory.close()


def test_memory_of_ours_follows_that_of_the_guest_and_is_in_no_file(files: list[int]) -> None:
    memory = GuestMemory((Region(0, 3 * PAGE, 0, 0, files[0]),), 2 * PAGE)
    assert (memory.size, memory.whole) == (3 * PAGE, 5 * PAGE)
    whole = at(memory.address, memory.whole, np.uint8)
    whole[:] = 7
    assert os.pread(files[0], 4 * PAGE, 0) == b"\7" * 3 * PAGE
    del whole
    memory.close()


def test_what_no_region_names_is_not_pinned(files: list[int]) -> None:
    """A front-end may give a file that is larger than any memory, and name its ends."""
    far = 1 << 50
    os.ftruncate(files[0], far + 3 * PAGE)
    regions = (
        Region(0, PAGE, 0, PAGE, files[0]),
        Region(1 << 20, 100, 0, far + 10, files[0]),
        Region(2 << 20, PAGE, 0, 2 * PAGE, files[0]),
    )
    memory = GuestMemory(regions)
    assert memory.size == 3 * PAGE
    assert {int(row["guest"]): int(row["place"]) for row in memory.spans} == {
        0: 0,
        1 << 20: 2 * PAGE + 10,
        2 << 20: PAGE,
    }
    at(memory.address, memory.size, np.uint8)[2 * PAGE + 10] = 9
    assert os.pread(files[0], 1, far + 10) == b"\x09"
    memory.close()


def test_another_file_by_the_same_descriptor_is_other_memory(files: list[int]) -> None:
    region = Region(0, PAGE, 0, 0, files[0])
    before = identity((region,))
    assert identity((region,)) == before
    os.dup2(files[1], files[0])
    assert identity((region,)) != before


def test_regions_that_overlap_or_end_in_a_page_are_whole_pages_once(files: list[int]) -> None:
    """A UMEM is whole pages."""
    memory = GuestMemory((Region(0, PAGE + 1, 0, 0, files[0]), Region(1 << 20, 100, 0, 50, files[0])))
    assert memory.size == 2 * PAGE
    assert sorted(int(row["place"]) for row in memory.spans) == [0, 50]
    memory.close()


def test_a_file_that_cannot_be_mapped_leaves_nothing(files: list[int]) -> None:
    reader, writer = os.pipe()
    before = Path("/proc/self/maps").read_text().count("\n")
    with pytest.raises(OSError, match=r"No such device|Permission denied"):
        GuestMemory((Region(0, PAGE, 0, 0, files[0]), Region(1 << 30, PAGE, 0, 0, reader)))
    assert Path("/proc/self/maps").read_text().count("\n") <= before + 1
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_pages_that_are_given_back_are_seen_and_those_that_come_are_not(files: list[int]) -> None:
    memory = GuestMemory((Region(0, 3 * PAGE, 0, 0, files[0]), Region(1 << 20, 4 * PAGE, 0, 0, files[1])))
    for page in range(7):
        at(memory.address, memory.size, np.uint8)[page * PAGE] = 7
        assert not memory.is_torn()
    punch(files[1], PAGE)
    assert memory.is_torn()
    memory.close()


def test_a_file_that_becomes_shorter_is_seen(files: list[int]) -> None:
    memory = GuestMemory((Region(0, PAGE, 0, 0, files[0]),))
    assert not memory.is_torn()
    os.ftruncate(files[0], PAGE)
    assert memory.is_torn()
    memory.close()


def test_a_page_that_is_not_there_when_all_are_taken_was_given_back(files: list[int]) -> None:
    memory = GuestMemory((Region(0, 3 * PAGE, 0, 0, files[0]),))
    at(memory.address, memory.size, np.uint8)[::PAGE] = 7
    memory.registered()
    assert not memory.is_torn()
    memory.close()
    memory = GuestMemory((Region(0, 3 * PAGE, 0, 0, files[0]),))
    punch(files[0], PAGE)
    assert not memory.is_torn()
    memory.registered()
    assert memory.is_torn()
    memory.close()


def test_memory_without_regions_is_none() -> None:
    """The kernel refuses it: there is nothing to crash for."""
    memory = GuestMemory(())
    assert (memory.size, len(memory.spans), memory.is_torn()) == (0, 0, False)
    memory.close()
