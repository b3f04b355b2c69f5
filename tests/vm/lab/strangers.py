# SPDX-License-Identifier: Apache-2.0
"""Frames that no guest of a stage (stage.py) is to get, drawn at random: each is nearly somebody's.

    another address, by one bit      another VLAN, another tag, two tags      a byte or more too long      cut short

All are full of the secret of a stranger, but for those that are too long: each of these is its addressee's, and may have been
read into what he has posted before anybody knew its length (docs/adr/0012).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from tests.hostile.arena import MACS
from tests.vm.lab.canaries import letter
from tests.vm.test_xdp import WIRE, tagged

VLANS: dict[str, int] = {"attacker": 0, "third": 5, "peer": 0}  # of the guests
EVERYBODY = "ff:ff:ff:ff:ff:ff"
STRANGER = "stranger"  # whose frames nobody is due
WIDE = 3000  # of the wire: what is too long for a VM has to come as far as the programs


def lost(to: str, size: int, number: int = 0) -> bytes:
    """A frame that nobody is due."""
    return letter(to, WIRE, number, size, STRANGER)


def service(data: bytes, tci: int, kind: bytes = b"\x88\xa8") -> bytes:
    """With a tag that is none of 802.1Q's: payload, for everybody here."""
    return data[:12] + kind + tci.to_bytes(2, "big") + data[12:]


def near_by(draw: random.Random) -> str:
    """A VM's address but for one bit, which does not make a group of it."""
    octets = bytearray.fromhex(MACS[draw.choice(list(VLANS))].replace(":", ""))
    bit = draw.choice([bit for bit in range(48) if bit != 0])
    octets[bit // 8] ^= 1 << bit % 8
    return octets.hex(":")


def other_addresses(draw: random.Random) -> bytes:
    """Another's address, in no VLAN or in that of a VM."""
    taken = {MACS[name] for name in VLANS}
    address = next(one for one in iter(lambda: near_by(draw), None) if one not in taken)
    data = lost(address, draw.randrange(60, 1515))
    return draw.choice([data, tagged(data, 5)])


FOREIGN_TAGS: dict[str, list[Callable[[bytes], bytes]]] = {
    "attacker": [
        *(partial(tagged, tci=tci) for tci in (1, 5, 7, 0xE005, 4094, 4095)),
        lambda data: tagged(tagged(data, 0), 5),
        lambda data: tagged(service(data, 0), 7),
    ],
    "third": [
        lambda data: data,
        *(partial(tagged, tci=tci) for tci in (0, 0x6000, 4, 6, 0xE007, 4094, 4095, 0x0500)),
        *(partial(service, tci=tci) for tci in (0, 5)),
        lambda data: service(tagged(data, 5), 5),
        lambda data: service(data, 5, b"\x91\x00"),
        lambda data: tagged(tagged(data, 5), 6),
        lambda data: tagged(tagged(data, 5), 0),
    ],
    EVERYBODY: [partial(tagged, tci=tci) for tci in (4, 6, 4094)],
}
FOREIGN_TAGS["peer"] = FOREIGN_TAGS["attacker"]


def other_vlans(draw: random.Random) -> bytes:
    to = draw.choice(list(FOREIGN_TAGS))
    return draw.choice(FOREIGN_TAGS[to])(lost(to, draw.randrange(60, 1500)))


def overlong(to: str, size: int) -> bytes:
    """As its guest would get it."""
    return letter(to, WIRE, 0, size)


def too_long(draw: random.Random) -> bytes:
    """Each VM's address in its VLAN, and a byte or more above its MTU."""
    to = draw.choice(list(VLANS))
    size = draw.choice([1515, 1516, 1518, 1519, 1792, 1793, 2048, WIDE + 14, draw.randrange(1515, WIDE)])
    return tagged(overlong(to, size), VLANS[to]) if VLANS[to] else overlong(to, size)


def runts(draw: random.Random) -> bytes:
    """Short frames of others, and frames that end in their tags."""
    if draw.random() < 0.5:
        return other_addresses(draw)[: draw.randrange(14, 60)]
    return tagged(lost(draw.choice(list(VLANS)), 60), draw.choice([0, 5]))[: draw.randrange(14, 18)]


def broadcasts(draw: random.Random) -> bytes:
    """To all in a VLAN where nobody is."""
    return draw.choice(FOREIGN_TAGS[EVERYBODY])(lost(EVERYBODY, draw.randrange(60, 1500)))


def anything(draw: random.Random) -> bytes:
    return draw.choice([other_addresses, other_vlans, too_long, runts])(draw)
