# SPDX-License-Identifier: Apache-2.0
"""Filters in the words of a request: what people write for a value, and the filter that it is.

    {"tests": [{"field": "mac_destination", "kind": "equal", "value": "52:54:00:00:00:01"}, …],
     "priority": 0, "flags": ["vlan_untagged_or_zero"]}

A value or mask is a number, or text: a MAC address, an IPv4 address, the word of a packet type, decimal digits, or
hexadecimal ones after 0x. Which of them a field has is that of its people. A MAC address has no hexadecimal number:
which end of it would come first? As a number it is the integer of vmq/abi/ethernet.py.

Only the form is judged here. Whether a value fits into its field, and whether the filter is one, is `filters.check`'s;
but a written value with bits outside its mask is refused here, with the value as it would be written.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address
from typing import Annotated

import msgspec

from vmq.abi.ethernet import mac_number
from vmq.errors import ApiError
from vmq.filters import Field, FieldTest, Filter, Flag, Kind, PacketType
from vmq.filters.model import field_text

MAC = re.compile(r"[0-9a-f]{2}(?:([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4})")
NUMBER = re.compile(r"[0-9]{1,15}|0x[0-9a-f]{1,12}")
ADDRESSES = (Field.MAC_DESTINATION, Field.MAC_SOURCE)
IPV4 = (Field.ARP_SPA, Field.ARP_TPA)
PACKETS = {kind.name.lower(): int(kind) for kind in PacketType}
FORMS = {
    **dict.fromkeys(ADDRESSES, "a MAC address, as 52:54:00:00:00:01"),
    **dict.fromkeys(IPV4, "an IPv4 address, as 10.0.0.1, or a number"),
    Field.PACKET_TYPE: f"{', '.join(PACKETS)} or a number",
}


class FlagName(StrEnum):
    """What concerns a filter as a whole; the names of Flag."""

    VLAN_UNTAGGED_OR_ZERO = "vlan_untagged_or_zero"
    ENCAPSULATION = "encapsulation"


class FieldTestWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One comparison. `mask` belongs to the kind mask_equal."""

    field: Field
    kind: Kind = Kind.EQUAL
    value: int | str
    mask: int | str = 0


class FilterWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a frame must pass, all of it. Of two filters that match a frame the one of higher priority decides."""

    tests: list[FieldTestWords]
    priority: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)] = 0
    flags: list[FlagName] = []


def number_of(field: Field, written: int | str) -> int:
    """The number that a value or mask of the field is; ApiError if the text is none."""
    if isinstance(written, int):
        return written
    text = written.strip().lower()
    if field in ADDRESSES:
        if MAC.fullmatch(text):
            return mac_number(text.replace("-", ":"))
    elif field in IPV4 and "." in text:
        try:
            return int(IPv4Address(text))
        except AddressValueError:
            pass
    elif field is Field.PACKET_TYPE and text in PACKETS:
        return PACKETS[text]
    elif NUMBER.fullmatch(text):
        return int(text, 16 if text.startswith("0x") else 10)
    form = FORMS.get(field, "a number, as 4094 or 0x0fff")
    raise ApiError("INVALID_PARAMETER", f"{field}: {written[:80]!r} is none of its values", f"write {form}")


def filter_of(words: FilterWords) -> Filter:
    """The filter that is meant."""
    flags = Flag(0)
    for name in words.flags:
        flags |= Flag[name.name]
    return Filter(tuple(map(_test_of, words.tests)), priority=words.priority, flags=flags)


def _test_of(words: FieldTestWords) -> FieldTest:
    value, mask = number_of(words.field, words.value), number_of(words.field, words.mask)
    if words.kind is Kind.MASK_EQUAL and mask and value & ~mask and isinstance(words.value, str):
        wrong = f"{words.field}: {words.value:.80} has bits outside the mask {words.mask!s:.80}, so nothing equals it"
        raise ApiError("INVALID_PARAMETER", wrong, f"use {_written(words.field, value & mask, words.value)}")
    return FieldTest(words.field, words.kind, value, mask)


def _written(field: Field, number: int, like: str) -> str:
    """The number as another value of the field was written."""
    text = like.strip().lower()
    if text.startswith("0x"):
        return f"{number:#x}"
    return str(number) if text.isdecimal() else field_text(field, number)
