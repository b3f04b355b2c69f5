# SPDX-License-Identifier: Apache-2.0
"""What the kernel has of one receive queue that is direct: pair, program at its far end, socket on the guest's memory.

It is made at leisure and shown to nobody. `open` lets frames through; the next version of the tables has its processor post
buffers (`begun`) and send frames into the pair, and only then does the NIC's program lead there. `shut` is the other way
round: when nothing is led there any more, and a mark has been through, what has landed is all that will.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from vmq.abi import bpf
from vmq.abi.ethernet import ETH_HLEN
from vmq.abi.linux import PACKET_VNET_HDR, SOL_PACKET
from vmq.abi.netdevice import SO_SNDBUFFORCE
from vmq.bpf.link import Link
from vmq.bpf.maps import Map, counters, hash_map, socket_map
from vmq.bpf.program import Program
from vmq.dataplane import state
from vmq.dataplane.packet import HEADER
from vmq.dataplane.reasons import TO_WIRE_ERROR
from vmq.direct.memory import GuestMemory
from vmq.direct.pair import FAR, Apart, Pair
from vmq.direct.polling import Polling
from vmq.direct.program import FOREIGN, MARKED, NO_SOCKET, PLACED, RUNT, TOO_LONG, VERDICTS, landing, mark
from vmq.direct.socket import GuestSocket
from vmq.jit import address_of, at
from vmq.uplink.packet import prepare_sending
from vmq.uplink.xdp_socket import SEND_BYTES
from vmq.uplink.xdp_steering import KEY_BYTES

FILTERS_MAX = (
    4096  # the kernel takes memory for all; more than a VM may learn, and those that go while others come
)
ALIGN = 64


class DirectQueue:
    """Of VM port `number`; its guest gets frames of `mtu` at most, without their 802.1Q tag (`strip`).

    Frames of `widest` cross its pair: all that a NIC's program leads there, so that what is too long is counted at the far end.
    """

    def __init__(
        self, far: Apart, number: int, memory: GuestMemory, mtu: int, widest: int, *, strip: bool
    ) -> None:
        self.number, self.memory, self._far = number, memory, far
        self._awaited: int | None = None  # marks that have been through when it is drained
        longest = mtu + ETH_HLEN
        self._arrays: list[Any] = []
        self.address, self.row = self._row(state.direct_queue)
        self._stack = contextlib.ExitStack()
        try:
            self.pair = Pair(far, number, widest)
            self._stack.callback(self.pair.close)
            self._maps()
            code = landing(self.filters, self._sockets, self.counted, longest, strip=strip)
            program = self._stack.enter_context(Program(bpf.BPF_PROG_TYPE_XDP, "vmq_landing", code))
            index = self.pair.far_index
            self._stack.enter_context(far.call(lambda: Link(program, index, flags=bpf.XDP_FLAGS_DRV_MODE)))
            self.socket = far.call(lambda: GuestSocket(index, memory.address, memory.size, longest, self.row))
            self._stack.callback(self.socket.close)
            far.call(self._near)
            far.call(self._poll)
        except BaseException:
            self.close()
            raise
        self.row["spans"], self.row["span_count"] = address_of(memory.spans), len(memory.spans)

    def _maps(self) -> None:
        self.filters = self._keep(hash_map("vmq_own", FILTERS_MAX, KEY_BYTES, 4))
        self._sockets = self._keep(socket_map("vmq_guest", 1))
        self.counted = self._keep(counters("vmq_landed", len(VERDICTS)))
        self.filters_now: set[tuple[int, int]] = set()

    def _keep(self, one: Map) -> Map:
        return self._stack.enter_context(one)

    def _row(self, structure: np.dtype[Any]) -> tuple[int, Any]:
        """A row of zeros on a cache line, as long as the queue; where it lies."""
        memory = self._memory(structure.itemsize)
        return address_of(memory), at(address_of(memory), 1, structure)[0]

    def _memory(self, size: int) -> Any:
        array = np.zeros(size + ALIGN, np.uint8)
        first = -address_of(array) % ALIGN
        self._arrays.append(array)
        return array[first : first + size]

    def _near(self) -> None:
        """A packet socket that sends into the pair and hears nothing."""
        near = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0
        )
        self.near = self._stack.enter_context(near)
        near.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        with contextlib.suppress(OSError):
            near.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BYTES)
        near.bind((self.pair.name, 0))
        (place, lane), (shown_at, self.sent) = self._row(state.lane), self._row(state.lane_state)
        lane["kind"], lane["fd"], lane["frame_max"] = state.LANE_PACKET, near.fileno(), state.FRAME_MAX
        prepare_sending(lane, lambda size: address_of(self._memory(size)))
        self.row["near"], self.row["near_state"] = place, shown_at
        self.row["turns"] = address_of(self._memory(8 * state.FRAMES))

    def _poll(self) -> None:
        """Its processor may do the kernel's work for the pair, where that can be had."""
        self.row["poll"], self.why_not_polled = state.NONE, ""
        try:
            self._polling = Polling(
                FAR.format(self.number), lambda data: self.near.send(bytes(HEADER) + data)
            )
            self._stack.callback(self._polling.close)
        except OSError as error:
            self.why_not_polled = f"the kernel cannot be asked: {error.strerror or error}"
        self._before = self.pair.refused(self._far.devices())  # of greetings: no frame of anybody's

    def look(self, now: float, frames: int) -> None:
        """Have its processor do the kernel's work, or not, for as many frames as it has had; asked again and again while it is led."""
        if not self.why_not_polled:
            self.poll(on=self._polling.is_to_be(now, frames))

    def poll(self, *, on: bool) -> None:
        """Have its processor do the kernel's work for the pair, or the kernel where frames come from."""
        if on == self.is_polled():
            return
        self.row["poll"] = state.NONE
        try:
            self._polling.reserve(on=on)
        except OSError as error:
            self.why_not_polled = f"the kernel refuses it now: {error.strerror or error}"
        else:
            self.row["poll"] = self._polling.fileno() if on else state.NONE

    def is_polled(self) -> bool:
        """Whether its processor does the kernel's work for the pair."""
        return bool(self.row["poll"] != state.NONE)

    def call(self, function: Callable[[], None]) -> None:
        """Do something in the namespace of the pair."""
        self._far.call(function)

    # --- what is led here ------------------------------------------------------------------------------------

    def follow(self, filters: Collection[tuple[int, int]]) -> None:
        """The VM's receive filters are these (address, VLAN id); OSError if they are too many."""
        wanted = set(filters)
        for mac, vid in wanted - self.filters_now:
            self.filters.update((mac | vid << state.VID_SHIFT).to_bytes(KEY_BYTES, "little"), bytes(4))
            self.filters_now.add((mac, vid))
        for mac, vid in self.filters_now - wanted:
            self.filters.delete((mac | vid << state.VID_SHIFT).to_bytes(KEY_BYTES, "little"))
            self.filters_now.discard((mac, vid))

    def open(self) -> None:
        """Let frames through to the guest, from when its processor has posted buffers."""
        self.row["begun"], self.row["unfit"], self._awaited = 0, 0, None
        self._sockets.update(bytes(4), self.socket.fileno().to_bytes(4, "little"))

    def mark(self) -> int:
        """Send a mark into the pair; how many will have been through with it. OSError: it takes none now."""
        before = self.counted.total(MARKED)
        self.near.send(bytes(HEADER) + mark())
        return before + 1

    def passed(self, marks: int) -> bool:
        """Whether so many marks have been through, and all before them has landed."""
        if self.counted.total(MARKED) < marks:
            return False
        landed = self.socket.received() + self.socket.lost()
        return (self.counted.total(PLACED) - landed) & state.M32 == 0

    def drained(self) -> bool:
        """Whether all has landed that was sent before this was asked for the first time since it was opened."""
        if self._awaited is None:
            try:
                self._awaited = self.mark()
            except OSError:  # no room yet
                return False
        return self.passed(self._awaited)

    def shut(self) -> None:
        """Let nothing through any more."""
        self._sockets.delete(bytes(4))

    def count_lost(self, devices: str) -> None:
        """Tell its processor what has been lost on the way through the pair, and where; `devices` as in pair.py."""
        foreign = sum(self.counted.total(verdict) for verdict in (FOREIGN, RUNT, NO_SOCKET))
        lost = self.row["lost"]
        lost[state.LOST_NO_BUFFER] = self.socket.lost()
        lost[state.LOST_TOO_LONG] = self.counted.total(TOO_LONG)
        refused = int(
            self.sent["to_wire_drops"][TO_WIRE_ERROR]
        )  # for want of room they are the pair's own count
        lost[state.LOST_PAIR] = (
            self.pair.refused(devices) - self._before + refused + foreign + self.socket.untold
        )

    def lost_are_booked(self) -> bool:
        """Whether its processor has counted what was told."""
        return bool((self.row["lost"] == self.row["booked"]).all())

    def verdicts(self) -> dict[str, int]:
        """How many frames met each verdict of the far end."""
        return {name: self.counted.total(index) for index, (name, _) in enumerate(VERDICTS)}

    def close(self) -> None:
        """Give everything back but the memory; no processor has it any more. It may be called again."""
        self._stack.close()
