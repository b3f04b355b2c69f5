# SPDX-License-Identifier: Apache-2.0
"""A worker's scratch, one lane and its state, without an engine: what the kernels of a wire need to run."""

from __future__ import annotations

import contextlib
import itertools
import socket
from typing import Any, Self

import numpy as np
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether

from vmq.abi.linux import UIO_MAXIOV, iovec
from vmq.abi.virtio import net_hdr
from vmq.dataplane import reasons, state
from vmq.dataplane.lanes import rx_burst, tx_burst
from vmq.dataplane.packet import HEADER
from vmq.jit import address_of, at
from vmq.uplink.packet import prepare_lane

SCRATCH = {
    "frames": state.FRAMES * state.frame.itemsize,
    "pieces": state.PIECES * state.piece.itemsize,
    "outgoing": state.FRAMES * 8,
    "iovecs": UIO_MAXIOV * iovec.itemsize,
    "header": 64,
    "bounce": state.BOUNCE,
    "arena": state.ARENA,
    "clock": 64,
}


ETHER = Ether(dst="52:54:00:00:00:01", src="52:54:00:00:00:02")


def plain(number: int, length: int = 60) -> bytes:
    return (
        bytes(ETHER)[:12]
        + b"\x88\xb5"
        + number.to_bytes(2, "big") * ((length - 14) // 2)
        + b"!" * (length % 2)
    )


def payload(length: int) -> bytes:
    return bytes(np.random.default_rng(length).integers(0, 256, length, np.uint8))


def data_of(frames: list[bytes]) -> bytes:
    """The payload of segments whose checksums and lengths scapy agrees with."""
    data = b""
    for frame in frames:
        packet = Ether(frame)
        layer = packet[TCP] if TCP in packet else packet[UDP]
        data += bytes(layer.payload)
        told = int(layer.chksum)
        del layer.chksum
        assert Ether(bytes(packet))[type(layer)].chksum == told
    return data


def aligned(size: int, boundary: int = 64) -> np.ndarray[Any, Any]:
    """Zeroed bytes that begin on a boundary."""
    memory = np.zeros(size + boundary, np.uint8)
    first = -address_of(memory) % boundary
    return memory[first : first + size]


class Round:
    """Rounds of one worker on lanes."""

    def __init__(self, frame_limit: int = state.FRAMES) -> None:
        self.w = np.zeros(1, state.worker)[0]
        self.t = np.zeros(1, state.tables)[0]
        self.t["frame_limit"] = frame_limit
        self._memory = {name: aligned(size) for name, size in SCRATCH.items()}
        for name, memory in self._memory.items():
            self.w[name] = address_of(memory)
        self.frames = at(int(self.w["frames"]), state.FRAMES, state.frame)
        self.pieces = at(int(self.w["pieces"]), state.PIECES, state.piece)
        self._outgoing = at(int(self.w["outgoing"]), state.FRAMES, np.int64)
        self._states: dict[int, Any] = {}
        self._kept: list[Any] = []

    def state_of(self, lane: Any) -> Any:
        """The state row of a lane."""
        return self._states.setdefault(id(lane), np.zeros(1, state.lane_state)[0])

    def drops(self, lane: Any) -> dict[str, int]:
        """Named drops of what came from the wire and of what went there."""
        row = self.state_of(lane)
        both = row["account"]["drops"] + row["to_wire_drops"]
        return {name: int(both[code]) for code, (name, _) in enumerate(reasons.DROPS) if both[code]}

    def begin(self) -> None:
        for name in ("frame_count", "piece_count", "outgoing_count", "arena_used"):
            self.w[name] = 0

    def receive(self, lane: Any) -> int:
        """One burst from the wire; what the kernel returns."""
        self.begin()
        return int(rx_burst(self.t, self.w, lane, self.state_of(lane), 1))

    def received(self) -> list[bytes]:
        """The frames of the round, each as it stood on the wire, its tag inside."""
        frames = []
        for row in self.frames[: int(self.w["frame_count"])]:
            data = bytes(at(int(row["address"]), int(row["length"]), np.uint8))
            assert row["head"] == row["length"]
            assert row["vid"] == row["tci"] & 0xFFF
            tag = b"\x81\x00" + int(row["tci"]).to_bytes(2, "big") if row["tagged"] else b""
            frames.append(data[:12] + tag + data[12:])
        return frames

    def drain(self, lane: Any, bursts: int = 1000) -> list[bytes]:
        """Every frame that is there."""
        frames = []
        for _ in range(bursts):
            if not self.receive(lane):
                break
            frames += self.received()
        return frames

    def put(self, frame: bytes, tci: int | None = None, cuts: tuple[int, ...] = ()) -> None:
        """Add a frame to what leaves, its bytes cut into pieces at `cuts`."""
        count = int(self.w["outgoing_count"])
        memory = aligned(len(frame) + 64)
        memory[: len(frame)] = np.frombuffer(frame, np.uint8)
        self._kept.append(memory)
        row, first = self.frames[count], int(self.w["piece_count"])
        edges = [*cuts, len(frame)]
        row["address"], row["head"], row["length"] = address_of(memory), edges[0], len(frame)
        row["piece_first"], row["piece_count"] = first, len(cuts)
        row["tci"], row["tagged"] = tci or 0, tci is not None
        for index, (start, end) in enumerate(itertools.pairwise(edges)):
            self.pieces[first + index] = (address_of(memory) + start, end - start)
        self._outgoing[count] = count
        self.w["piece_count"] += len(cuts)
        self.w["outgoing_count"] += 1

    def send_received(self, lane: Any) -> None:
        """Send the frames of the round, from where they were received."""
        count = int(self.w["frame_count"])
        self._outgoing[:count] = np.arange(count)
        self.w["outgoing_count"] = count
        tx_burst(self.w, lane, self.state_of(lane))

    def transmit(self, lane: Any) -> None:
        tx_burst(self.w, lane, self.state_of(lane))
        self._kept.clear()


class PacketLane:
    """A lane of packet kind on one end of a pair of datagram sockets: what no packet socket is needed for."""

    def __init__(self, frame_max: int = 1514) -> None:
        self.peer, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.peer, self.socket):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._memory: list[Any] = []
        self.row = np.zeros(1, state.lane)[0]
        self.row["fd"], self.row["frame_max"] = self.socket.fileno(), frame_max
        prepare_lane(self.row, self.memory)

    def memory(self, size: int) -> int:
        self._memory.append(aligned(size))
        return address_of(self._memory[-1])

    def deliver(self, frame: bytes, **header: int) -> None:
        """Send the lane a frame behind a packet header."""
        told = np.zeros(1, net_hdr)
        for name, value in header.items():
            told[name] = value
        self.peer.send(told.tobytes()[:HEADER] + frame)

    def sent(self) -> list[tuple[bytes, bytes]]:
        """Packet headers and frames that the lane sent."""
        got = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self.peer.recv(1 << 17)
                got.append((data[:HEADER], data[HEADER:]))
        return got

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()
        self.socket.close()
