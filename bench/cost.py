# SPDX-License-Identifier: Apache-2.0
"""What receive queues and filters cost a frame: more of them, generic ones, a queue of one's own or none.

Each row is a table of cores (core.py) that are measured in turn; its other lines are compared with its first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy.typing as npt

from bench.core import POSTED, ROUNDS, Core, Order, in_runs, in_turn, mac, recording, scattered
from bench.stats import Figure
from vmq.filters import Field, FieldTest, Filter, Kind
from vmq.filters.compiled import rows
from vmq.publisher import FilterEntry, QueueEntry

PLAIN, GENERIC = (1, 16, 256, 4096), (1, 4, 16, 64, 256)
QUEUES, SEGMENT = (1, 4, 16, 64, 256), 64
FLOWS, FLOW_QUEUES = (1, 1024, 32768, 1 << 20), 4
COUNT = {64: 131072, 1514: 8192, 9000: 2048}  # frames of a recording: 8, 12 and 18 MiB
BUFFERS = {
    64: POSTED,
    1514: 8192,
    9000: 8192,
}  # that are written to: 4 MiB of theirs, 12, and 16, five a frame
ROUNDS_OF = {64: ROUNDS, 1514: ROUNDS, 9000: ROUNDS // 8}
FLOW_COUNT = 1 << 20  # frames of a recording of any number of flows: 64 MiB, and rows of 32
TIMES = 3  # values a run: each takes some ten milliseconds
UNUSED_PORT = 20000  # UDP; frames go to port 9
ELSEWHERE = 1  # an uplink that has filters and no frames


def with_filters(plain: int, generic: int = 0, uplink: int = 0) -> Core:
    """One guest with so many addresses, each with its filter, and generic filters on an uplink."""
    macs = [mac(number) for number in range(plain)]
    filters = [FilterEntry(0, {(one, 0): 0 for one in macs}, generic_rows(0 if uplink else generic))]
    if uplink:
        filters.append(FilterEntry(uplink, {}, generic_rows(generic)))
    return Core(recording(64, macs, scattered(COUNT[64], plain)), macs, filters=filters)


def generic_rows(count: int) -> npt.NDArray[Any]:
    """Filters that no frame passes, so that every frame is compared with all: each of another UDP port."""
    tests = (FieldTest(Field.UDP_DESTINATION, Kind.EQUAL, UNUSED_PORT + number) for number in range(count))
    return rows([(Filter((test,)), 0) for test in tests])


def with_queues(
    queues: int, segment: int = SEGMENT, *, order: Callable[[int, int], Order] = in_runs, sends: bool = True
) -> Core:
    """So many guests, `segment` of them in a VLAN; a burst to one, then one to the next, or another order."""
    macs = [mac(number) for number in range(queues)]
    vlans = [1 + number // segment for number in range(queues)]
    played = recording(64, macs, order(COUNT[64], queues), vlans)
    return Core(played, macs, queues, vlans=vlans, sends=sends)


def with_flows(flows: int) -> Core:
    """Frames of so many pairs of addresses and ports, to four receive queues in random order."""
    macs = [mac(number) for number in range(FLOW_QUEUES)]
    played = recording(64, macs, scattered(FLOW_COUNT, FLOW_QUEUES), flows=flows)
    return Core(played, macs, FLOW_QUEUES)


def with_guests(size: int, guests: int, shared: bool) -> Core:
    """Frames of a size to some guests in random order, whose receive queues are their own, or `shared`: none is."""
    macs = [mac(number) for number in range(guests)]
    played = recording(size, macs, scattered(COUNT[size], guests))
    entry = QueueEntry(0, shared=shared, generation=1)
    return Core(played, macs, guests, entry=entry, posted=BUFFERS[size], rounds=ROUNDS_OF[size])


def filters(runs: int) -> dict[str, Figure]:
    """ns a frame with more and more plain filters, and the frames of as many addresses."""
    return in_turn({f"{count} plain": partial(with_filters, count) for count in PLAIN}, TIMES * runs)


def generic(runs: int) -> dict[str, Figure]:
    """ns a frame beside generic filters: none, those of another uplink, and its own."""
    cores = {
        "none": partial(with_filters, 1),
        "256 on another uplink": partial(with_filters, 1, max(GENERIC), ELSEWHERE),
        **{f"{count} on its own": partial(with_filters, 1, count) for count in GENERIC},
    }
    return in_turn(cores, TIMES * runs)


def queues(runs: int) -> dict[str, Figure]:
    """ns a frame with more and more guests, each indication of 64 frames; and where floods make it one of 32.

    A round has room for 8192 copies (state.DELIVERIES): a segment of more than 128 guests shortens every burst.
    """
    most = max(QUEUES)
    cores = {f"{count} receive queues": partial(with_queues, count) for count in QUEUES}
    cores |= {
        f"{most}, no guest has a transmit ring": partial(with_queues, most, sends=False),
        f"{most}, all in one segment": partial(with_queues, most, most),
    }
    return in_turn(cores, TIMES * runs)


def singles(runs: int) -> dict[str, Figure]:
    """ns a frame when each goes to a receive queue of its own: more of them, and fewer frames an indication."""
    cores = {f"{count} receive queues": partial(with_queues, count, order=scattered) for count in QUEUES}
    return in_turn(cores, TIMES * runs)


def flows(runs: int) -> dict[str, Figure]:
    """ns a frame of one flow and of a million; a recording is as large for one as for the other."""
    return in_turn({f"{count} flows": partial(with_flows, count) for count in FLOWS}, TIMES * runs)


def own(size: int, guests: int, runs: int) -> dict[str, Figure]:
    """ns a frame with receive queues of their own, and with none."""
    cores = {
        "receive queues of their own": partial(with_guests, size, guests, False),
        "the default queue": partial(with_guests, size, guests, True),
    }
    return in_turn(cores, TIMES * runs)


ROWS: dict[str, Callable[[int], dict[str, Figure]]] = {
    "filters": filters,
    "generic": generic,
    "queues": queues,
    "singles": singles,
    "flows": flows,
    **{f"own-{size}-{guests}": partial(own, size, guests) for size in (64, 1514, 9000) for guests in (1, 4)},
}
