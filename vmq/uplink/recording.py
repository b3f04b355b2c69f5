# SPDX-License-Identifier: Apache-2.0
"""Frames laid out in memory in normal form, for lanes that replay: from a capture, from a list, or made here.

        rows    [address length tci tagged] …      the order of the replay
        block   [frame ....pad][frame ....pad] …   untagged, each on a cache line

`record` takes frames as they stand on a wire. `generate` makes UDP frames: every row has bytes of its own, so that a
replay reaches past the caches as real traffic does, and addresses follow one another in random order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vmq.abi.ethernet import ETH_ALEN, ETH_HLEN, ETH_P_8021Q, ETH_TYPE_OFFSET, VLAN_HLEN, mac_number
from vmq.abi.inet import ETH_P_IP, IPPROTO_UDP, ipv4, udp
from vmq.abi.layout import offset
from vmq.dataplane.state import FRAME_MAX, M16, recorded
from vmq.jit import address_of

LINE = 64
SEED = 20260  # the same frames in every run
NOBODY = mac_number("02:00:00:00:00:00")  # the destination when nobody is named
SOURCE = mac_number("02:06:00:00:00:00")  # the flow's number in the last four bytes
WORKING_SET = 8 << 20  # bytes; more than the second-level cache of a processor
ROWS_MAX = 1 << 20
BYTES_MAX = 1 << 30


@dataclass
class Recording:
    """Rows to replay, the memory they point to, and what was left out."""

    rows: npt.NDArray[Any]
    block: npt.NDArray[np.uint8]
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Bytes of the longest frame, without tag."""
        return int(self.rows["length"].max()) if len(self.rows) else 0


def _block(count: int, stride: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Memory for `count` strides, and the offset of its first cache line."""
    block = np.zeros(count * stride + LINE, np.uint8)
    return block, -address_of(block) % LINE


def _aligned(size: int) -> int:
    return (size + LINE - 1) & ~(LINE - 1)


def normal_form(frame: bytes) -> tuple[bytes, int, int] | str:
    """Frame without its outer 802.1Q tag, tag control information, whether there was one; or why it is refused."""
    if len(frame) < ETH_HLEN:
        return "shorter than an Ethernet header"
    tci = tagged = 0
    if int.from_bytes(frame[ETH_TYPE_OFFSET:ETH_HLEN], "big") == ETH_P_8021Q:
        if len(frame) < ETH_HLEN + VLAN_HLEN:
            return "ends inside its VLAN tag"
        tci, tagged = int.from_bytes(frame[ETH_HLEN : ETH_HLEN + 2], "big"), 1
        frame = frame[:ETH_TYPE_OFFSET] + frame[ETH_TYPE_OFFSET + VLAN_HLEN :]
    if len(frame) > FRAME_MAX - VLAN_HLEN:
        return "longer than any frame"
    return frame, tci, tagged


def record(frames: Iterable[tuple[bytes, int]]) -> Recording:
    """Lay out frames; each comes with the length it had on the wire. One cut short by its capture is refused."""
    kept: list[tuple[bytes, int, int]] = []
    refused: dict[str, int] = {}
    for data, original in frames:
        normal = normal_form(data) if len(data) >= original else "cut short when it was captured"
        if isinstance(normal, str):
            refused[normal] = refused.get(normal, 0) + 1
        else:
            kept.append(normal)
    block, place = _block(1, sum(_aligned(len(data)) for data, _, _ in kept))
    rows = np.zeros(len(kept), recorded)
    for index, (data, tci, tagged) in enumerate(kept):
        block[place : place + len(data)] = np.frombuffer(data, np.uint8)
        rows[index] = (address_of(block) + place, len(data), tci, tagged)
        place += _aligned(len(data))
    return Recording(rows, block, refused)


def rows_for(size: int, flows: int, count: int | None) -> tuple[int, int] | None:
    """Rows of a generated recording, and how often it is replayed (0: for ever); None if there is no such number.

    Each flow has a row, and as many more as a working set takes. A limited number of frames is exactly kept.
    """
    most = min(ROWS_MAX, BYTES_MAX // _aligned(size))
    if flows > most:
        return None
    wanted = min(-(-max(flows, WORKING_SET // _aligned(size)) // flows) * flows, most // flows * flows)
    if count is None:
        return wanted, 0
    if count <= wanted:
        return count, 1
    for rows in itertools.chain(range(wanted, most + 1), range(wanted - 1, flows - 1, -1)):
        if count % rows == 0:
            return rows, count // rows
    return None


def generate(size: int, flows: int, count: int, targets: Sequence[tuple[int, int]]) -> Recording:
    """`count` frames of `size` bytes in `flows` flows, to each (MAC, VLAN id) of `targets` in turn, shuffled."""
    numbers = np.random.default_rng(SEED).permutation(count)
    flow = numbers % flows
    stride = _aligned(size)
    block, start = _block(count, stride)
    table = block[start : start + count * stride].reshape(count, stride)
    places = targets or [(NOBODY, 0)]
    macs = np.array([mac for mac, _ in places], "<u8").view(np.uint8).reshape(-1, 8)[:, :ETH_ALEN]
    vids = np.array([vid for _, vid in places], np.int64)
    # A flow keeps its destination: numbers that are equal modulo `flows` are one flow.
    to = flow % len(places)
    table[:, :ETH_ALEN] = macs[to]
    sources = (SOURCE + (flow.astype("<u8") << np.uint64(16))).astype("<u8")
    table[:, ETH_ALEN : 2 * ETH_ALEN] = sources.view(np.uint8).reshape(-1, 8)[:, :ETH_ALEN]
    _put(table, ETH_TYPE_OFFSET, np.full(count, ETH_P_IP), 2)
    _datagrams(table, size, flow)
    rows = np.zeros(count, recorded)
    rows["address"] = address_of(block) + start + np.arange(count) * stride
    rows["length"], rows["tci"], rows["tagged"] = size, vids[to], vids[to] > 0
    return Recording(rows, block)


def _put(table: npt.NDArray[np.uint8], place: int, values: npt.NDArray[Any], width: int) -> None:
    """Store big-endian numbers of `width` bytes at column `place`."""
    for byte in range(width):
        table[:, place + byte] = (values >> (8 * (width - 1 - byte))) & 255


def _datagrams(table: npt.NDArray[np.uint8], size: int, flow: npt.NDArray[Any]) -> None:
    """IPv4 and UDP headers, one pair of addresses and ports a flow; the UDP checksum is left out (rfc-768 "Fields")."""
    count, ip, datagram = len(table), ETH_HLEN, ETH_HLEN + ipv4.itemsize

    def number(value: int) -> npt.NDArray[Any]:
        return np.full(count, value)

    table[:, ip] = 4 << 4 | ipv4.itemsize // 4
    _put(table, ip + offset(ipv4, "total_length"), number(size - ETH_HLEN), 2)
    table[:, ip + offset(ipv4, "ttl")] = 64
    table[:, ip + offset(ipv4, "protocol")] = IPPROTO_UDP
    _put(
        table, ip + offset(ipv4, "source"), (198 << 24 | 18 << 16) + flow // LINE, 4
    )  # rfc-2544 §C.2.2 Protocol Addresses
    _put(table, ip + offset(ipv4, "destination"), number(198 << 24 | 19 << 16 | 1), 4)
    header = table[:, ip:datagram].astype(np.int64)
    total = (header[:, ::2] << 8 | header[:, 1::2]).sum(axis=1)
    total = (total & M16) + (total >> 16)
    total = (total & M16) + (total >> 16)
    _put(table, ip + offset(ipv4, "checksum"), total ^ M16, 2)
    _put(table, datagram + offset(udp, "source"), 1024 + flow % LINE, 2)
    _put(table, datagram + offset(udp, "destination"), number(9), 2)  # discard
    _put(table, datagram + offset(udp, "length"), number(size - datagram), 2)
