# SPDX-License-Identifier: Apache-2.0
"""Memory that the kernel pins: what is torn is remembered as long as its VM is there. Obstacles: test_directing.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.direct.holes import punch
from vmq.engine import pinned
from vmq.errors import ProtocolError
from vmq.linux import PAGE
from vmq.vhost.message import Region


@pytest.fixture
def vm() -> Iterator[Any]:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, 4 * PAGE)
    rows = list[tuple[int, int, int]]()
    segment = SimpleNamespace(
        add_mapping=lambda *row: rows.append(row),
        drop_mapping=lambda host: rows.remove(next(row for row in rows if row[1] == host)),
    )
    session = SimpleNamespace(regions=(Region(0, 4 * PAGE, 0, 0, descriptor),))
    yield SimpleNamespace(
        name="a", number=3, session=session, engine=SimpleNamespace(segment=segment), rows=rows
    )
    os.close(descriptor)


def test_memory_is_taken_with_room_of_ours_behind_it_and_given_back(vm: Any) -> None:
    memory = pinned.take(vm, 2 * PAGE)
    assert (memory.size, memory.whole) == (4 * PAGE, 6 * PAGE)
    assert vm.rows == [(3, memory.address, 4 * PAGE)]
    pinned.give_back(vm, memory)
    assert vm.rows == []


def test_memory_that_no_row_is_left_for_is_refused_and_nothing_stays_mapped(vm: Any) -> None:
    def full(*_: object) -> None:
        raise ProtocolError("a rule", "too many regions", "use fewer")

    vm.engine.segment.add_mapping = full
    with pytest.raises(OSError, match="too many regions") as refused:
        pinned.take(vm)
    assert pinned.said(refused.value) == "too many regions"


def test_torn_memory_is_remembered_by_its_files_until_the_vm_is_gone(vm: Any) -> None:
    torn, memory = pinned.Torn(), pinned.take(vm)
    assert not torn.has(vm)
    memory.registered()
    punch(vm.session.regions[0].fd, 0)
    assert memory.is_torn()
    torn.add(vm, memory)
    assert torn.has(vm)
    torn.tidy({"a"})
    assert torn.has(vm)
    other = SimpleNamespace(name="b", session=vm.session)
    assert not torn.has(other)  # type: ignore[arg-type]
    torn.tidy(set())
    assert not torn.has(vm)
    pinned.give_back(vm, memory)


def test_what_an_error_says() -> None:
    assert pinned.said(OSError(16, "busy")) == "busy"
    assert pinned.said(ValueError("odd")) == "odd"
