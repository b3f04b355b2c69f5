# SPDX-License-Identifier: Apache-2.0
"""Headers against those that scapy builds: every field stands where it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from vmq.abi import inet

HEADERS: list[tuple[np.dtype[Any], Packet, dict[str, int]]] = [
    (
        inet.ipv4,
        IP(tos=1, len=2, id=3, flags=0, frag=4, ttl=5, proto=6, chksum=7, src="0.0.0.8", dst="0.0.0.9"),
        {"version_ihl": 0x45, "tos": 1, "total_length": 2, "id": 3, "fragment": 4, "ttl": 5, "protocol": 6}
        | {"checksum": 7, "source": 8, "destination": 9},
    ),
    (
        inet.ipv6,
        IPv6(tc=0, fl=1, plen=2, nh=3, hlim=4, src="::5", dst="::6"),
        {"flow": 0x60000001, "payload_length": 2, "next_header": 3, "hop_limit": 4},
    ),
    (
        inet.tcp,
        TCP(sport=1, dport=2, seq=3, ack=4, dataofs=5, flags="FPC", window=6, chksum=7, urgptr=8),
        {"source": 1, "destination": 2, "sequence": 3, "acknowledgement": 4, "data_offset": 0x50}
        | {"flags": inet.TCP_FIN | inet.TCP_PSH | inet.TCP_CWR, "window": 6, "checksum": 7, "urgent": 8},
    ),
    (
        inet.udp,
        UDP(sport=1, dport=2, len=3, chksum=4),
        {"source": 1, "destination": 2, "length": 3, "checksum": 4},
    ),
]


@pytest.mark.parametrize(("layout", "packet", "fields"), HEADERS)
def test_every_field_stands_where_it_reads(
    layout: np.dtype[Any], packet: Packet, fields: dict[str, int]
) -> None:
    header = np.frombuffer(bytes(packet), layout.newbyteorder(">"), 1)[0]

    assert {name: int(header[name]) for name in fields} == fields


def test_addresses_of_ipv6_are_its_last_bytes() -> None:
    header = np.frombuffer(bytes(IPv6(src="::5", dst="::6")), inet.ipv6, 1)[0]

    assert (bytes(header["source"]), bytes(header["destination"])) == (bytes(15) + b"\5", bytes(15) + b"\6")
