# SPDX-License-Identifier: Apache-2.0
"""What every lane to a real wire does: bring a received frame into normal form, lay one out for sending.

In normal form a frame carries no 802.1Q tag: the tag lies beside it in its row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_HLEN, ETH_TYPE_OFFSET, TPID_8021Q_LE, VLAN_HLEN, VLAN_VID_MASK
from vmq.abi.linux import iovec
from vmq.dataplane.from_guest import ADMITTED, untag
from vmq.dataplane.handover import flatten
from vmq.dataplane.offload import swap16
from vmq.dataplane.reasons import FROM_WIRE_TOO_LONG, RUNT
from vmq.dataplane.state import PIECES, piece
from vmq.jit import at, int64, kernel, poke

VECTOR = 4  # parts of a frame besides its pieces: header, addresses, tag, the rest of the first part
TAG_ROOM = 16  # bytes from a packet header to the room for a tag behind it


@kernel
def refuse(state: Any, length: int, code: int) -> None:
    """Count a frame from the wire that is dropped."""
    state["frames_from_wire"] += 1
    state["bytes_from_wire"] += max(length, 0)
    state["account"]["drops"][code] += 1


@kernel
def fresh(row: Any, address: int, length: int, tci: int, tagged: int) -> None:
    """Make `row` of one contiguous frame."""
    row["address"] = address
    row["head"] = row["length"] = length
    row["piece_first"] = row["piece_count"] = 0
    row["tci"] = tci
    row["tagged"] = tagged


@kernel
def admit(w: Any, lane: Any, state: Any, row: Any, cut: bool) -> None:
    """Count a received frame in normal form, and keep it in the round unless it is too long or was cut."""
    length = int64(row["length"])
    if cut or length > lane["frame_max"]:
        refuse(state, length, FROM_WIRE_TOO_LONG)
        return
    state["frames_from_wire"] += 1
    state["bytes_from_wire"] += length
    row["vid"] = int64(row["tci"]) & VLAN_VID_MASK
    w["frame_count"] += 1


@kernel
def normalise(state: Any, row: Any, address: int, length: int) -> bool:
    """Make `row` of a received frame that carries its tag inside; False: it is refused, and counted."""
    if length < ETH_HLEN:
        refuse(state, length, RUNT)
        return False
    fresh(row, address, length, 0, 0)
    outcome = untag(row)
    if outcome != ADMITTED:
        refuse(state, length, -1 - outcome)
        return False
    return True


@kernel
def frame_vector(w: Any, row: Any, vector: int, room: int, header: int, header_length: int) -> int:
    """Lay out header, frame and tag as iovecs at `vector`, which has room for VECTOR at least; their number.

    A frame in more pieces than `room` allows is made contiguous in w["bounce"].
    """
    parts = at(vector, room, iovec)
    parts[0]["base"] = header
    parts[0]["len"] = header_length
    count = int64(1)
    first, head = int64(row["address"]), int64(row["head"])
    pieces = at(w["pieces"], PIECES, piece)
    scattered = int64(row["piece_count"])
    if scattered > room - VECTOR:
        flatten(row, pieces, w["bounce"])
        first, head, scattered = int64(w["bounce"]), int64(row["length"]), int64(0)
    if row["tagged"]:
        tag = header + TAG_ROOM
        poke(tag, np.uint16, np.uint16(TPID_8021Q_LE))
        poke(tag + 2, np.uint16, np.uint16(swap16(int64(row["tci"]))))
        parts[1]["base"] = first
        parts[1]["len"] = ETH_TYPE_OFFSET
        parts[2]["base"] = tag
        parts[2]["len"] = VLAN_HLEN
        count = int64(3)
        first, head = first + ETH_TYPE_OFFSET, head - ETH_TYPE_OFFSET
    parts[count]["base"] = first
    parts[count]["len"] = head
    count += 1
    for index in range(row["piece_first"], row["piece_first"] + scattered):
        parts[count]["base"] = pieces[index]["address"]
        parts[count]["len"] = pieces[index]["length"]
        count += 1
    return count
