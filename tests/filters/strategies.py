# SPDX-License-Identifier: Apache-2.0
"""Filters and frames for properties: few values, so that they meet; frames are scapy's, damaged and cut."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, GRE, LLC, Dot1Q, Dot3, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from vmq.abi.ethernet import mac_number
from vmq.filters import Field, FieldTest, Filter, Flag, Kind
from vmq.filters.model import BITS, NO_FLAGS

A, B, C = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:01:01"
GROUP, EVERYBODY = "01:10:18:01:00:02", "ff:ff:ff:ff:ff:ff"
MACS = [mac_number(text) for text in (A, B, C, GROUP, EVERYBODY)]
ADDRESS = int.from_bytes(bytes((10, 0, 0, 2)), "big")

VALUES = {
    Field.MAC_DESTINATION: MACS,
    Field.MAC_SOURCE: MACS,
    Field.ETHERTYPE: [0x0800, 0x0806, 0x86DD, 0x88B5, 0x8906],
    Field.VLAN_ID: [0, 5, 6, 4095],
    Field.PRIORITY: [0, 3, 7],
    Field.PACKET_TYPE: [1, 2, 3],
    Field.ARP_OPERATION: [1, 2],
    Field.ARP_SPA: [ADDRESS, ADDRESS + 1],
    Field.ARP_TPA: [ADDRESS, ADDRESS + 1],
    Field.IPV4_PROTOCOL: [1, 6, 17, 47],
    Field.IPV6_PROTOCOL: [0, 6, 17, 47],
    Field.UDP_DESTINATION: [53, 4789],
}


@st.composite
def field_tests(draw: st.DrawFn, fields: tuple[Field, ...] = tuple(Field)) -> FieldTest:
    field = draw(st.sampled_from(fields))
    kind = draw(st.sampled_from(list(Kind)))
    value = draw(st.sampled_from(VALUES[field]))
    highest = (1 << BITS[field]) - 1
    if kind is not Kind.MASK_EQUAL:
        return FieldTest(field, kind, value)
    mask = draw(st.sampled_from([1, highest, highest - 1, highest >> 1]) | st.integers(1, highest))
    return FieldTest(field, kind, value & mask, mask)


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    """A filter with a test of the destination; that a frame can pass it is not promised."""
    tests = [draw(field_tests((Field.MAC_DESTINATION,))), *draw(st.lists(field_tests(), max_size=3))]
    flags = draw(st.sampled_from([NO_FLAGS, NO_FLAGS, *Flag, Flag(3)]))
    if any(test.field is Field.VLAN_ID for test in tests):
        flags &= Flag.ENCAPSULATION
    return Filter(tuple(draw(st.permutations(tests))), draw(st.integers(-1, 1)), flags)


V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
INNER = Ether(dst=B, src=C, type=0x88B5)
NVGRE = GRE(key_present=1, key=77, proto=0x6558)
PAYLOADS: tuple[Packet, ...] = (
    ARP(op=1, psrc="10.0.0.2", pdst="10.0.0.3"),
    ARP(op=2, psrc="10.0.0.3", pdst="10.0.0.2"),
    V4 / ICMP(),
    V4 / TCP(),
    V4 / UDP(dport=53),
    IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_Router_Alert()]) / UDP(dport=53),
    IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP(dport=53) / b"first",
    IP(src="10.0.0.1", dst="10.0.0.2", frag=3, proto=17) / b"a later fragment",
    V4 / UDP(dport=4789) / VXLAN(vni=7, flags=8) / INNER,
    V4 / UDP(dport=4789) / VXLAN(vni=7, flags=8) / Ether(dst=GROUP, src=A) / Dot1Q(vlan=9) / V4,
    V4 / UDP(dport=4789) / VXLAN(vni=7, flags=0) / INNER,
    V4 / NVGRE / INNER,
    V4 / GRE(proto=0x6558) / INNER,
    V4 / GRE(key_present=1, seqnum_present=1, proto=0x6558) / INNER,
    V4 / GRE(key_present=1, key=77, proto=0x0800) / V4,
    V6 / TCP(),
    V6 / UDP(dport=53),
    V6 / IPv6ExtHdrHopByHop() / UDP(dport=53),
    V6 / UDP(dport=4789) / VXLAN(vni=7, flags=8) / INNER,
    V6 / NVGRE / INNER,
    ARP(hwtype=6, hwlen=6, plen=4, hwsrc=bytes(6), hwdst=bytes(6)),
    ARP(ptype=0x86DD, hwlen=6, plen=4, psrc=bytes(4), pdst=bytes(4)),
    ARP(hwlen=8),
    IP(version=6) / UDP(dport=53),
    IP(ihl=4) / UDP(dport=53),
    IPv6(version=4) / UDP(dport=53),
)


@cache
def templates() -> tuple[bytes, ...]:
    framed = [bytes(Ether(dst=A, src=B) / payload) for payload in PAYLOADS]
    return (
        *framed,
        bytes(Dot3(dst=A, src=B) / LLC(dsap=0x42, ssap=0x42)),
        bytes(Ether(dst=A, src=B, type=0x8906)) + bytes(46),
    )


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Any bytes, but nearly those of a known kind."""
    frame = bytearray(draw(st.sampled_from(templates())))
    for start in (0, 6):
        frame[start : start + 6] = draw(st.sampled_from(MACS)).to_bytes(6, "little")
    for place in draw(st.lists(st.integers(12, 75), max_size=2)):
        if place < len(frame):
            frame[place] = draw(st.sampled_from([0, 1, 6, 17, 47, 0x45, 0x46, 0x4F, 0x60, 255]))
    if draw(st.booleans()):
        del frame[draw(st.integers(0, len(frame))) :]
    return bytes(frame)


@st.composite
def tags(draw: st.DrawFn) -> tuple[int, int, bool]:
    """VLAN id, TCI, and whether there is a tag at all."""
    if not draw(st.booleans()):
        return 0, 0, False
    vid, priority = draw(st.sampled_from([0, 5, 6, 4095])), draw(st.integers(0, 15))
    return vid, priority << 12 | vid, True
