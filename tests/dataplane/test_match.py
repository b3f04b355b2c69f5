# SPDX-License-Identifier: Apache-2.0
"""The kernel against the definition of filters, on frames that are whole, damaged and cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_Router_Alert
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from tests.dataplane.harness_wire import aligned
from tests.filters.strategies import INNER, MACS, NVGRE, V4, V6, A, filters, frames, tags, templates
from vmq.abi.ethernet import mac_number
from vmq.dataplane import match as kernels
from vmq.dataplane import state
from vmq.filters.compiled import in_order, rows
from vmq.filters.model import ADDRESSES, BITS, Field, FieldTest, Filter, Kind, PacketType
from vmq.filters.reference import matches, read
from vmq.jit import address_of

Tag = tuple[int, int, bool]
UNTAGGED = (0, 0, False)
OPTIONS = IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_Router_Alert()])
VXLAN_INNER = UDP(dport=4789) / VXLAN(flags=8) / INNER
TO_A = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(A))


def parsed(frame: bytes, tag: Tag, *, head: int | None = None, filler: int = 0) -> Any:
    """The columns of a frame; behind its head the memory is full of `filler`."""
    memory = aligned(len(frame) + 128)
    memory[:] = filler
    memory[: len(frame)] = np.frombuffer(frame, np.uint8)
    row = np.zeros(1, state.frame)[0]
    row["address"], row["length"] = address_of(memory), len(frame)
    row["head"] = len(frame) if head is None else head
    row["vid"], row["tci"], row["tagged"] = tag
    fields = np.zeros(1, kernels.columns)[0]
    fields["present"] = -1  # what an earlier frame left
    fields["value"] = 77
    kernels.parse(row, fields)
    return fields


def shown(fields: Any) -> dict[str, int]:
    present = int(fields["present"])
    return {
        name: int(fields["value"][column])
        for column, name in enumerate(kernels.COLUMNS)
        if present >> column & 1
    }


def expected(frame: bytes, tag: Tag) -> dict[str, int]:
    """The same columns by the definition."""
    seen = read(frame, *tag)
    columns = {str(field): value for field, value in seen.outer.items()}
    columns |= {f"inner_{field}": value for field, value in seen.inner.items() if field in ADDRESSES}
    return columns | ({"vlan_or_zero": seen.outer.get(Field.VLAN_ID, 0)} if seen.outer else {})


@settings(max_examples=400)
@given(frames(), tags())
def test_a_frame_has_the_columns_that_the_definition_says(frame: bytes, tag: Tag) -> None:
    assert shown(parsed(frame, tag)) == expected(frame, tag)


@pytest.mark.parametrize("number", range(len(templates())))
def test_no_byte_behind_the_head_decides(number: int) -> None:
    """Every kind of frame, cut at every length: the rest of a guest's frame is the guest's to change."""
    frame = templates()[number]
    for head in range(len(frame) + 1):
        answers = [shown(parsed(frame[:head], UNTAGGED, filler=filler)) for filler in (0, 0x45, 0xFF)]
        answers.append(shown(parsed(frame, UNTAGGED, head=head)))
        assert answers == [expected(frame[:head], UNTAGGED)] * 4


@pytest.mark.parametrize(("packet", "column", "bytes_needed"), [
    (ARP(), "arp_tpa", 42), (V4 / UDP(dport=53), "ipv4_protocol", 34), (V6 / UDP(dport=53), "ipv6_protocol", 54),
    (V4 / UDP(dport=53), "udp_destination", 42), (V6 / UDP(dport=53), "udp_destination", 62),
    (OPTIONS / UDP(dport=53), "udp_destination", 46),
    (V4 / NVGRE / INNER, "inner_mac_source", 56), (V6 / NVGRE / INNER, "inner_mac_source", 76),
    (V4 / VXLAN_INNER, "inner_mac_source", 64), (V6 / VXLAN_INNER, "inner_mac_source", 84),
])  # fmt: skip
def test_how_much_of_a_frame_a_column_needs(packet: Packet, column: str, bytes_needed: int) -> None:
    """The table of docs/filters.md: of a guest's frame there are 64 at most."""
    assert state.HEAD == 64  # and 60 of one that came with a tag
    frame = bytes(Ether(dst=A, src=A) / packet) + bytes(20)

    found = [column in shown(parsed(frame, UNTAGGED, head=head)) for head in range(len(frame) + 1)]

    assert found.index(True, 14) == bytes_needed
    assert all(found[bytes_needed:])


def target_of(entries: list[tuple[Filter, int]], fields: Any) -> int:
    table = rows(entries)
    return int(kernels.match(address_of(table), len(table), fields))


@settings(max_examples=400)
@given(st.lists(filters(), max_size=6), frames(), tags())
def test_the_first_filter_in_order_that_matches_decides(made: list[Filter], frame: bytes, tag: Tag) -> None:
    entries = [(one, 100 + place) for place, one in enumerate(made)]
    wanted = next((target for one, target in in_order(entries) if matches(one, frame, *tag)), state.NONE)

    assert target_of(entries, parsed(frame, tag)) == wanted


@settings(max_examples=100)
@given(filters(), frames(), tags(), st.randoms())
def test_the_order_of_tests_changes_nothing(one: Filter, frame: bytes, tag: Tag, random) -> None:
    tests = list(one.tests)
    random.shuffle(tests)
    fields = parsed(frame, tag)

    assert target_of([(one, 1)], fields) == target_of([(Filter(tuple(tests), flags=one.flags), 1)], fields)


def test_a_table_without_rows_matches_nothing() -> None:
    assert target_of([], parsed(templates()[0], UNTAGGED)) == state.NONE


def test_a_frame_without_an_ethernet_header_matches_nothing() -> None:
    anything = FieldTest(Field.MAC_DESTINATION, Kind.NOT_EQUAL, 0)

    for length in range(14):
        assert target_of([(Filter((anything,)), 1)], parsed(bytes(range(length)), UNTAGGED)) == state.NONE
    assert target_of([(Filter((anything,)), 1)], parsed(bytes(range(14)), UNTAGGED)) == 1


def test_any_target_but_none_comes_back_as_it_went_in() -> None:
    """Receive queues, and whatever else a target stands for."""
    fields = parsed(templates()[0], UNTAGGED)

    for target in (0, 1, state.MAX_QUEUES, 1 << 40, -2):
        assert target_of([(Filter((TO_A,)), target)], fields) == target


@pytest.mark.parametrize("field", Field)
def test_the_widest_values_of_every_field_are_compared_whole(field: Field) -> None:
    """No column is narrower than its field, none is signed."""
    highest = (1 << BITS[field]) - 1
    fields = np.zeros(1, kernels.columns)[0]
    fields["present"] = -1
    for value in (0, 1, highest - 1, highest):
        fields["value"] = value
        for kind, mask in ((Kind.EQUAL, 0), (Kind.NOT_EQUAL, 0), (Kind.MASK_EQUAL, highest)):
            test = FieldTest(field, kind, highest, mask)
            assert (target_of([(Filter((test,)), 1)], fields) == 1) is test.passes(value)


def test_rows_are_lines_of_the_cache() -> None:
    assert kernels.field_test.itemsize == state.LINE


def test_columns_and_packet_types_are_those_of_filters() -> None:
    names = {*map(str, Field), *(f"inner_{field}" for field in ADDRESSES), "vlan_or_zero"}

    assert set(kernels.COLUMNS) == names
    assert all(getattr(kernels, name.upper()) == place for place, name in enumerate(kernels.COLUMNS))
    assert list(PacketType) == [kernels.UNICAST, kernels.MULTICAST, kernels.BROADCAST]
    assert {
        read(mac.to_bytes(6, "little") + bytes(8), *UNTAGGED).outer[Field.PACKET_TYPE] for mac in MACS
    } == {1, 2, 3}
