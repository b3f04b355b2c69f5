# SPDX-License-Identifier: Apache-2.0
"""MAC addresses as numbers in wire order."""

from __future__ import annotations

import pytest

from vmq.abi.ethernet import (
    LINK_LOCAL_MASK,
    LINK_LOCAL_VALUE,
    MAC_BROADCAST,
    MAC_GROUP_BIT,
    mac_number,
    mac_text,
)


@pytest.mark.parametrize("text", ["00:00:00:00:00:00", "52:54:00:12:34:56", "ff:ff:ff:ff:ff:ff"])
def test_number_is_what_a_little_endian_load_of_the_wire_gives(text: str) -> None:
    assert mac_number(text).to_bytes(6, "little") == bytes.fromhex(text.replace(":", ""))
    assert mac_text(mac_number(text)) == text


@pytest.mark.parametrize(
    "text", ["", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:zz", "525400123456"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        mac_number(text)


def test_group_bit_is_the_first_bit_on_the_wire() -> None:
    assert mac_number("01:00:5e:00:00:01") & MAC_GROUP_BIT
    assert not mac_number("02:00:00:00:00:01") & MAC_GROUP_BIT
    assert mac_number("ff:ff:ff:ff:ff:ff") == MAC_BROADCAST


@pytest.mark.parametrize(("text", "inside"), [
    ("01:80:c2:00:00:00", True), ("01:80:c2:00:00:0e", True), ("01:80:c2:00:00:0f", True),
    ("01:80:c2:00:00:10", False), ("01:80:c2:00:01:00", False), ("01:10:18:01:00:00", False),
])  # fmt: skip
def test_link_local_block_has_sixteen_addresses(text: str, *, inside: bool) -> None:
    """ieee-802.1Q §8.6.3 Frame filtering: 01:80:c2:00:00:00 to 0f; FCoE's groups are not among them."""
    assert ((mac_number(text) & LINK_LOCAL_MASK) == LINK_LOCAL_VALUE) is inside
