# SPDX-License-Identifier: Apache-2.0
"""One virtual machine without a machine: memory, queue pairs, a front-end; frames are bytes.

    with Guest(path, "52:54:00:00:00:01") as guest:
        guest.send([frame])
        assert guest.receive(1) == [answer]

`start` begins or continues, `stop` takes the rings back as a paused machine does, `reset` begins anew as a driver
does that was loaded again, `reconnect` hangs up and goes on where the used index stands, as QEMU does. It behaves
well on its own; `guest.virtqueue(…)`, `guest.memory` and `guest.frontend` are there to misbehave with.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from vmq.abi.virtio import (
    NET_HDR_GSO_NONE,
    VHOST_USER_F_PROTOCOL_FEATURES,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    net_hdr,
)
from vmq.errors import ProtocolError
from vmq.guest.driver import HEADER, RING
from vmq.guest.frontend import Frontend
from vmq.guest.memory import PAGE, Array, Memory, adjacent
from vmq.guest.rings import Descriptor, Shape, Virtqueue, private

INCOMING = "virtio-1.2 §5.1.6.4 Processing of Incoming Packets"
ROOM = 1 << 20  # guest memory beside rings and buffers, for tests and for frames in place
TRANSMIT_BYTES = 2048  # bytes of a transmit buffer, at least
NO_HEADER = bytes(HEADER)


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame as it came: its packet header, the chains it spanned, the receive queue."""

    frame: bytes
    header: bytes
    chains: int
    queue: int


@dataclass(slots=True)
class Counters:
    """What the guest did and saw; calls and kicks are eventfd writes."""

    frames_received: int = 0
    bytes_received: int = 0
    frames_sent: int = 0
    bytes_sent: int = 0
    empty: int = 0  # receive buffers returned unused
    bad: int = 0  # used elements that name no chain of ours
    calls: int = 0
    kicks: int = 0


class Guest:
    """A guest at the vhost-user socket `path`.

    `regions`: a number of adjacent ones, or (guest address, size) each. `post`: receive buffers kept posted, None
    for all. `receive_shape` and `transmit_shape` lay out the chains; `strict` refuses packet headers that the
    negotiated features do not allow.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mac: str,
        queues: int = 1,
        size: int = 256,
        mergeable: bool = True,
        event_idx: bool = True,
        indirect: bool = True,
        regions: int | Sequence[tuple[int, int]] = 1,
        buffer_bytes: int = 2048,
        server: bool = False,
        *,
        receive_shape: Shape | None = None,
        transmit_shape: Shape | None = None,
        post: int | None = None,
        mtu: int = 0,
        features: int | None = None,
        room: int = ROOM,
        sealed: bool = True,
        add_regions: bool = True,
        strict: bool = True,
        timeout: float = 10.0,
    ) -> None:
        self.mac, self.queues, self.size, self.mtu = mac, queues, size, mtu
        self.post, self.strict, self.timeout = post, strict, timeout
        shapes = (
            receive_shape or Shape(buffer_bytes),
            transmit_shape or Shape(max(buffer_bytes, TRANSMIT_BYTES)),
        )
        if features is None:
            features = wanted_features(
                mergeable=mergeable, event_idx=event_idx, indirect=indirect, pairs=queues, mtu=mtu
            )
        self.features = features
        total = room + queues * sum(shape.room(size) for shape in shapes) + PAGE
        layout = adjacent(total, regions) if isinstance(regions, int) else regions
        self.frontend = Frontend(path, server=server, timeout=timeout, add_regions=add_regions)
        self.memory = Memory(layout, sealed=sealed)
        self.rows: Array = private(2 * queues, RING)
        self.virtqueues = tuple(
            Virtqueue(self.memory, index, size, shapes[index % 2], self.rows[index : index + 1])
            for index in range(2 * queues)
        )
        self.pairs = 0  # queue pairs that run
        self._count = Counters()
        self._packets: deque[Packet] = deque()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def virtqueue(self, queue: int = 0, *, to_guest: bool = False) -> Virtqueue:
        """One half of a receive queue, to look at or to abuse."""
        return self.virtqueues[2 * queue + (0 if to_guest else 1)]

    # --- life ---------------------------------------------------------------------------------------------

    def start(self, pairs: int | None = None) -> Self:
        """Connect if need be, hand over memory and the first `pairs` queue pairs (all), post receive buffers."""
        front = self.frontend
        if not front.connected:
            front.connect()
            front.handshake(self.features)
        pairs = self.queues if pairs is None else pairs
        if self.mtu:
            front.set_mtu(self.mtu)
        front.set_features()
        front.set_memory(self.memory)
        for virtqueue in self.virtqueues[: 2 * pairs]:
            virtqueue.agree(
                mergeable=front.negotiated(VIRTIO_NET_F_MRG_RXBUF),
                event_idx=front.negotiated(VIRTIO_RING_F_EVENT_IDX),
                indirect=front.negotiated(VIRTIO_RING_F_INDIRECT_DESC),
            )
            virtqueue.want_calls()
            self._post(virtqueue)
            front.start_ring(virtqueue.place(), virtqueue.base)
        for virtqueue in self.virtqueues[: 2 * pairs]:
            front.enable(virtqueue.index)
        front.barrier()
        self.pairs = pairs
        return self

    def stop(self) -> None:
        """Take the rings back; `start` goes on where the back-end says it stopped."""
        for virtqueue in self.virtqueues[: 2 * self.pairs]:
            virtqueue.base = self.frontend.stop_ring(virtqueue.index)
        self.pairs = 0

    def reset(self) -> None:
        """Forget all that is in the rings, which must be stopped; the next start begins at 0 with all buffers."""
        for virtqueue in self.virtqueues:
            virtqueue.reset()

    def reconnect(self, pairs: int | None = None) -> Self:
        """Hang up, connect again and go on: the back-end is to begin at the used index, as QEMU tells it."""
        self.frontend.disconnect()
        for virtqueue in self.virtqueues:
            virtqueue.base = virtqueue.used_index
        return self.start(self.pairs if pairs is None else pairs)

    def close(self) -> None:
        """Hang up and give everything back."""
        self.frontend.close()
        for virtqueue in self.virtqueues:
            virtqueue.close()
        self.memory.close()

    @property
    def counters(self) -> Counters:
        """A snapshot, with calls and kicks up to now."""
        for virtqueue in self.virtqueues:
            virtqueue.drain_calls()
        now = Counters(**{field.name: getattr(self._count, field.name) for field in fields(Counters)})
        now.calls = sum(virtqueue.calls for virtqueue in self.virtqueues)
        now.kicks = sum(int(virtqueue.row["kicks"]) for virtqueue in self.virtqueues)
        now.bad = sum(int(virtqueue.row["bad"]) for virtqueue in self.virtqueues)
        return now

    # --- frames -------------------------------------------------------------------------------------------

    def receive(self, count: int = 1, timeout: float = 5.0) -> list[bytes]:
        """The next `count` frames, fewer if `timeout` seconds bring no more."""
        return [packet.frame for packet in self.receive_packets(count, timeout)]

    def receive_packets(self, count: int = 1, timeout: float = 5.0) -> list[Packet]:
        """As `receive`, with the packet headers."""
        deadline = time.monotonic() + timeout
        incoming = self.virtqueues[: 2 * self.pairs : 2]
        while True:
            for virtqueue in incoming:
                self._packets.extend(self._drain(virtqueue))
            left = deadline - time.monotonic()
            if len(self._packets) >= count or left <= 0:
                break
            wait_for_calls(incoming, left)
        return [self._packets.popleft() for _ in range(min(count, len(self._packets)))]

    def send(self, frames: Sequence[bytes], queue: int = 0, *, header: bytes = NO_HEADER) -> None:
        """Put frames into the transmit virtqueue, waiting for room; TimeoutError if the device takes none."""
        virtqueue = self.virtqueue(queue)
        packets = [header + frame for frame in frames]
        if any(len(packet) > virtqueue.shape.buffer_bytes for packet in packets):
            raise ValueError(
                f"a frame is longer than {virtqueue.shape.buffer_bytes}: use a larger transmit_shape"
            )
        deadline = time.monotonic() + self.timeout
        while packets:
            virtqueue.give_slots([slot for slot, _ in virtqueue.harvest()])
            slots = virtqueue.take_slots(len(packets))
            for slot, packet in zip(slots, packets, strict=False):
                self.memory.write(virtqueue.buffer(slot), packet)
                virtqueue.describe(slot, virtqueue.buffer(slot), len(packet))
            virtqueue.submit(slots)
            self._count.frames_sent += len(slots)
            self._count.bytes_sent += sum(len(packet) - len(header) for packet in packets[: len(slots)])
            packets = packets[len(slots) :]
            if packets and not slots:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{self.mac}: {len(packets)} frames left, and the device takes none")
                wait_for_calls([virtqueue], left)

    def sent(self, timeout: float = 5.0) -> bool:
        """Wait until the device has returned everything sent; whether it has."""
        deadline = time.monotonic() + timeout
        outgoing = self.virtqueues[1 : 2 * self.pairs : 2]
        while True:
            for virtqueue in outgoing:
                virtqueue.give_slots([slot for slot, _ in virtqueue.harvest()])
            left = deadline - time.monotonic()
            if all(virtqueue.free_slots == virtqueue.slots for virtqueue in outgoing) or left <= 0:
                return left > 0
            wait_for_calls(outgoing, left)

    def raw_chain(
        self, chain: Sequence[Descriptor], queue: int = 0, *, to_guest: bool = False, indirect: bool = False
    ) -> int:
        """Make any descriptors available as one chain and kick; the head."""
        return self.virtqueue(queue, to_guest=to_guest).raw_chain(chain, indirect=indirect)

    def _post(self, virtqueue: Virtqueue) -> None:
        """Top up the receive buffers of a virtqueue to `post`."""
        if not virtqueue.row["writable"]:
            return
        wanted = virtqueue.slots if self.post is None else self.post
        slots = virtqueue.take_slots(wanted - (virtqueue.slots - virtqueue.free_slots))
        for slot in slots:
            virtqueue.describe(slot, virtqueue.buffer(slot), virtqueue.shape.buffer_bytes)
        virtqueue.submit(slots)

    def _drain(self, virtqueue: Virtqueue) -> list[Packet]:
        """All frames that wait in one virtqueue; their buffers are posted again."""
        chains = deque(virtqueue.harvest())
        returned = [slot for slot, _ in chains]
        packets = []
        while chains:
            pieces = [self._piece(virtqueue, *chains.popleft())]
            if len(pieces[0]) < HEADER:
                self._count.empty += 1
                continue
            count = self._chains(virtqueue, pieces[0][:HEADER])
            if count > 1 + len(chains):
                raise ProtocolError(INCOMING, f"a frame of {count} chains was shown with {1 + len(chains)}")
            pieces += [self._piece(virtqueue, *chains.popleft()) for _ in range(count - 1)]
            data = b"".join(pieces)
            packets.append(Packet(data[HEADER:], data[:HEADER], count, virtqueue.index // 2))
            self._count.frames_received += 1
            self._count.bytes_received += len(data) - HEADER
        virtqueue.give_slots(returned)
        self._post(virtqueue)
        return packets

    def _piece(self, virtqueue: Virtqueue, slot: int, length: int) -> bytes:
        if length > virtqueue.shape.buffer_bytes:
            raise ProtocolError(
                INCOMING, f"{length} bytes written to a buffer of {virtqueue.shape.buffer_bytes}"
            )
        return self.memory.read(virtqueue.buffer(slot), length)

    def _chains(self, virtqueue: Virtqueue, data: bytes) -> int:
        """Chains a frame spans, by its packet header."""
        header = net_hdr_of(data)
        if self.strict and (header["flags"] or header["gso_type"] != NET_HDR_GSO_NONE):
            raise ProtocolError(
                INCOMING, f"a packet header with offloads that were not agreed on: {data.hex()}"
            )
        count = header["num_buffers"]
        if not virtqueue.row["mergeable"]:
            if self.strict and count != 1:
                raise ProtocolError(
                    INCOMING, f"num_buffers is {count}, not 1, without VIRTIO_NET_F_MRG_RXBUF"
                )
            return 1
        if count == 0:
            raise ProtocolError(INCOMING, "num_buffers is 0")
        return count


def wanted_features(*, mergeable: bool, event_idx: bool, indirect: bool, pairs: int, mtu: int) -> int:
    """The feature word a driver of these abilities asks for."""
    wanted = {
        VIRTIO_F_VERSION_1: True,
        VHOST_USER_F_PROTOCOL_FEATURES: True,
        VIRTIO_NET_F_MRG_RXBUF: mergeable,
        VIRTIO_RING_F_EVENT_IDX: event_idx,
        VIRTIO_RING_F_INDIRECT_DESC: indirect,
        VIRTIO_NET_F_MQ: pairs > 1,
        VIRTIO_NET_F_MTU: mtu > 0,
    }
    return sum(1 << bit for bit, asked in wanted.items() if asked)


def net_hdr_of(data: bytes) -> dict[str, int]:
    """The fields of a packet header."""
    row = np.frombuffer(data, net_hdr, 1)[0]
    return {name: int(row[name]) for name in net_hdr.names or ()}


def wait_for_calls(virtqueues: Sequence[Virtqueue], timeout: float) -> None:
    """Sleep until the device calls for one of these, at most `timeout` seconds."""
    waiting = [virtqueue.want_calls() for virtqueue in virtqueues]  # ask all of them, then look
    if any(waiting):
        return
    poller = select.poll()
    for virtqueue in virtqueues:
        poller.register(virtqueue.call_fd, select.POLLIN)
    poller.poll(timeout * 1000)
    for virtqueue in virtqueues:
        virtqueue.drain_calls()
