# SPDX-License-Identifier: Apache-2.0
"""The way without vmq, to compare with: python -m vmq.speed.bridge SIZE GUESTS, in a network namespace of its own.

    frames in memory ─► write ─► TAP "wire" ─► Linux bridge, by MAC ─► a TAP a guest ─► read ─► copy ─► guest's buffers

The kernel's part is the real one. Of QEMU's virtio-net there is what it does for every frame, and no more: one read()
of one frame with its packet header into a buffer of its own, a copy from there into the guest's receive buffers, a used
element and the used index; and for every burst of 64 frames an epoll_wait() for each guest, and the read() that finds nothing more.
All in compiled code and one thread, so nothing of QEMU's own overhead is in it, no wake-up, no indication to the guest, no guest:
it flatters QEMU. Writing the same frames to a TAP outside the bridge, where the kernel drops them, is measured in turn
and taken off: a NIC's driver would bring frames otherwise. What is left is a cost, so there is no rate.

Before the first measurement a lap of the recording is compared, byte for byte, as each TAP gives it. While it is measured every
guest must get as many frames as name it, each of the right length: a flooded copy does not make up for a lost frame.

For every line of its input that is a number of seconds it measures as long, and answers with a line of JSON. The
namespace, and all in it, goes with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_ALEN, ETH_HLEN, mac_number
from vmq.abi.layout import i64, rows
from vmq.abi.linux import (
    IFF_NO_PI,
    IFF_TAP,
    IFF_VNET_HDR,
    TUNSETIFF,
    TUNSETVNETHDRSZ,
    epoll_event,
    timespec,
)
from vmq.abi.virtio import net_hdr, vring_used, vring_used_elem
from vmq.clock import now
from vmq.dataplane.state import M16, recorded
from vmq.jit import (
    address_of,
    at,
    c_epoll_wait,
    c_read,
    c_write,
    compile_for,
    copy,
    int64,
    kernel,
    peek,
    poke,
    same_bytes,
    store_release,
)
from vmq.speed.stand import LOCAL_TYPE, RING, USUAL_MTU, mac, processors, recording
from vmq.uplink import link

WIRE, NOWHERE, BRIDGE = "wire", "nowhere", "bridge"
BURST, BUFFER, PAGE = 64, 2048, 4096
LONGEST = 1 << 16  # bytes that a read may give
HEADER = net_hdr.itemsize
STAMP = 46  # bytes into a frame: in the payload of the shortest
LATENCIES = 1 << 16  # frames of which one measurement keeps how long they were under way
SPAN = 32  # bursts between two looks at the clock
STATION = "02:06:00:00:00:00"

HOST = rows(
    ("frames", i64), ("count", i64), ("size", i64), ("cursor", i64),  # `recorded` rows, all of a size, round and round
    ("wire", i64), ("guests", i64), ("guest_count", i64),  # descriptor of a TAP; GUEST rows
    ("bounce", i64), ("events", i64), ("clock", i64),
    ("stamping", i64), ("proving", i64),  # frames carry when they were written; each is compared
    ("latencies", i64), ("latency_count", i64),  # ns of each frame
    ("lost", i64),
)  # fmt: skip
GUEST = rows(
    ("tap", i64), ("epoll", i64),
    ("buffers", i64), ("used", i64), ("next", i64),  # RING buffers of BUFFER bytes; used elements behind their index
    ("mac", i64), ("due", i64), ("frames", i64),  # frames that name it: written, and arrived
    ("faults", i64), ("cursor", i64),  # frames that are not its own, or not as written; where comparing is
)  # fmt: skip


@kernel
def bring(host: Any, descriptor: int) -> None:
    """Write a burst of frames, each due at the guest whose number is the last byte of its destination."""
    frames = at(host["frames"], host["count"], recorded)
    guests = at(host["guests"], host["guest_count"], GUEST)
    for place in range(BURST):
        frame = frames[(int64(host["cursor"]) + place) % int64(host["count"])]
        if host["stamping"]:
            poke(int64(frame["address"]) + STAMP, np.int64, now(host))
        if c_write(descriptor, int64(frame["address"]), int64(frame["length"])) < 0:
            host["lost"] += 1
        guests[int64(peek(int64(frame["address"]) + ETH_ALEN - 1, np.uint8))]["due"] += 1
    host["cursor"] = (int64(host["cursor"]) + BURST) % int64(host["count"])


@kernel
def deliver(guest: Any, source: int, length: int) -> None:
    """Copy a frame with its packet header into as many receive buffers as it takes, and show them."""
    done = int64(0)
    slot = int64(guest["next"])
    elements = at(int64(guest["used"]) + vring_used.itemsize, RING, vring_used_elem)
    while done < length:
        part = min(length - done, BUFFER)
        copy(int64(guest["buffers"]) + slot % RING * BUFFER, source + done, part)
        element = elements[slot % RING]
        element["id"], element["len"] = slot % RING, part
        done += part
        slot += 1
    guest["next"] = slot
    store_release(at(guest["used"], 1, vring_used)[0], "idx", slot & M16)
    guest["frames"] += 1


@kernel
def destination(frame: int) -> int:
    """The address that a frame names."""
    return int64(peek(frame, np.uint32)) | (int64(peek(frame + 4, np.uint16)) << 32)


@kernel
def compare(host: Any, guest: Any, frame: int, length: int) -> None:
    """A fault unless this is the next frame of the recording that names the guest."""
    frames = at(host["frames"], host["count"], recorded)
    for _ in range(int64(host["count"])):
        row = frames[guest["cursor"]]
        guest["cursor"] = (int64(guest["cursor"]) + 1) % int64(host["count"])
        if destination(int64(row["address"])) == guest["mac"]:
            if row["length"] != length or not same_bytes(int64(row["address"]), frame, length):
                guest["faults"] += 1
            return
    guest["faults"] += 1


@kernel
def serve(host: Any, guest: Any) -> None:
    """What QEMU does when a TAP is readable: one frame after the other until there is none."""
    if c_epoll_wait(guest["epoll"], host["events"], 1, 0) != 1:
        return
    frame = int64(host["bounce"]) + HEADER
    while True:
        length = c_read(guest["tap"], host["bounce"], LONGEST)
        if length <= 0:
            return
        deliver(guest, int64(host["bounce"]), length)
        if length != HEADER + int64(host["size"]) or destination(frame) != guest["mac"]:
            guest["faults"] += 1
        elif host["proving"]:
            compare(host, guest, frame, length - HEADER)
        if host["stamping"] and host["latency_count"] < LATENCIES:
            taken = now(host) - peek(frame + STAMP, np.int64)
            at(host["latencies"], LATENCIES, np.int64)[host["latency_count"]] = taken
            host["latency_count"] += 1


@kernel
def bursts(address: int, count: int) -> None:
    """So many bursts, all the way."""
    host = at(address, 1, HOST)[0]
    guests = at(host["guests"], host["guest_count"], GUEST)
    for _ in range(count):
        bring(host, host["wire"])
        for number in range(int64(host["guest_count"])):
            serve(host, guests[number])


@kernel
def written(address: int, descriptor: int, count: int) -> None:
    """So many bursts, to where the kernel drops them."""
    host = at(address, 1, HOST)[0]
    for _ in range(count):
        bring(host, descriptor)


def compile_kernels() -> None:
    compile_for(bursts, "int64", "int64")
    compile_for(written, "int64", "int64", "int64")


def tap(name: str, flags: int, mtu: int) -> int:
    """A TAP, up; its descriptor, which does not block."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, link.interface_request(name, IFF_TAP | IFF_NO_PI | flags))
    if flags & IFF_VNET_HDR:
        fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", HEADER))
    link.set_mtu(name, mtu)
    link.set_up(name)
    return descriptor


class Bridge:
    """The bridge, its TAPs, and guests' receive buffers; in this namespace. RuntimeError if it changes or loses a frame."""

    def __init__(self, size: int, guests: int) -> None:
        self.size, mtu = size, max(USUAL_MTU, size - ETH_HLEN)
        for scope in ("default", "all"):  # it would speak on the bridge
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1\n")
        making = ("ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        subprocess.run(making, check=True, timeout=30)  # noqa: S603 - a fixed one
        link.set_up(BRIDGE)
        self.wire, self.nowhere = tap(WIRE, 0, mtu), tap(NOWHERE, 0, mtu)
        names = [f"guest{number}" for number in range(guests)]
        self.taps = [tap(name, IFF_VNET_HDR, mtu) for name in names]
        for name in (WIRE, *names):
            link.join_bridge(BRIDGE, link.index_of(name))
        self._guests(guests)
        self._host(guests)
        self._teach()
        self._prove()

    def _guests(self, count: int) -> None:
        self._epolls = [select.epoll() for _ in range(count)]
        self._memory = np.zeros((count, RING * BUFFER + RING * vring_used_elem.itemsize + PAGE), np.uint8)
        self.rows = np.zeros(count, GUEST)
        for number, (row, one, epoll, memory) in enumerate(
            zip(self.rows, self.taps, self._epolls, self._memory, strict=True)
        ):
            epoll.register(one, select.EPOLLIN)
            row["mac"] = mac_number(mac(number))
            row["tap"], row["epoll"] = one, epoll.fileno()
            row["buffers"], row["used"] = address_of(memory), address_of(memory) + RING * BUFFER

    def _host(self, guests: int) -> None:
        self._played = recording(self.size, guests)
        self._scratch = np.zeros(LONGEST, np.uint8), np.zeros(1, epoll_event), np.zeros(1, timespec)
        self.latencies = np.zeros(LATENCIES, np.int64)
        self.row = np.zeros(1, HOST)
        self.row["frames"], self.row["count"] = address_of(self._played.rows), len(self._played.rows)
        self.row["size"] = self.size
        self.row["wire"], self.row["guests"], self.row["guest_count"] = (
            self.wire,
            address_of(self.rows),
            guests,
        )
        for name, memory in zip(("bounce", "events", "clock"), self._scratch, strict=True):
            self.row[name] = address_of(memory)
        self.row["latencies"] = address_of(self.latencies)

    def _teach(self) -> None:
        """Each guest sends a frame, so that the bridge knows where it is; what that flooded is thrown away."""
        for number, one in enumerate(self.taps):
            addresses = bytes.fromhex((STATION + mac(number)).replace(":", ""))
            os.write(one, bytes(HEADER) + addresses + LOCAL_TYPE + bytes(46))
        for one in (self.wire, *self.taps):
            with contextlib.suppress(BlockingIOError):
                while os.read(one, LONGEST):
                    pass

    def _begin(self) -> None:
        """Count from here."""
        self.row["lost"], self.row["latency_count"] = 0, 0
        for name in ("due", "frames", "faults"):
            self.rows[name] = 0

    def _refuse_lost(self) -> None:
        if self.row["lost"][0]:
            raise RuntimeError(f"{self.row['lost'][0]} frames could not be written")

    def _count(self) -> list[int]:
        """Frames of each guest; RuntimeError unless they are those that name it."""
        self._refuse_lost()
        for number, row in enumerate(self.rows):
            if row["frames"] != row["due"] or row["faults"]:
                raise RuntimeError(
                    f"guest {number} got {row['frames']} frames and not {row['due']}, "
                    f"{row['faults']} of them not as they were written, or to another"
                )
        return [int(count) for count in self.rows["frames"]]

    def _prove(self) -> None:
        """A lap, compared byte for byte; or a little more: a whole number of bursts."""
        self._begin()
        self.row["proving"] = 1
        bursts(address_of(self.row), -(-len(self._played.rows) // BURST))
        self.row["proving"] = 0
        self._count()

    def measure(self, seconds: float) -> dict[str, Any]:
        """Ns of this thread for each frame, all the way less the writing; RuntimeError if that cannot be told."""
        place = address_of(self.row)
        self._begin()
        way = self._spent(seconds / 2, lambda: bursts(place, SPAN))
        counted = self._count()
        drop = self._spent(seconds / 2, lambda: written(place, self.nowhere, SPAN))
        self._refuse_lost()
        cost = cost_of(way, drop)
        self._begin()
        self.row["stamping"] = 1
        bursts(place, SPAN)
        self.row["stamping"] = 0
        self._count()
        found = self.latencies[: int(self.row["latency_count"][0])]
        return {
            "frames": counted,
            "host_ns": cost * sum(counted),
            "writing_ns_a_frame": drop,
            "p50_ns": float(np.percentile(found, 50)),
            "p99_ns": float(np.percentile(found, 99)),
        }

    def _spent(self, seconds: float, work: Callable[[], None]) -> float:
        """Ns a frame on the processor, over so many seconds of it."""
        began, spans = time.thread_time_ns(), 0
        while (spent := time.thread_time_ns() - began) < seconds * 1e9:
            work()
            spans += 1
        return spent / (spans * SPAN * BURST)

    def close(self) -> None:
        for one in (self.wire, self.nowhere, *self.taps):
            os.close(one)
        for epoll in self._epolls:
            epoll.close()


def cost_of(way: float, drop: float) -> float:
    """What is left of ns a frame without the writing; RuntimeError if that is nothing, so the machine was too noisy."""
    if way <= drop:
        raise RuntimeError(f"a frame took {way:.0f} ns all the way, and {drop:.0f} for the writing alone")
    return way - drop


def say(line: str) -> None:
    """To whoever asked."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    size, guests = map(int, sys.argv[1:])
    cpu, _ = processors()
    os.sched_setaffinity(0, {cpu})
    compile_kernels()
    with contextlib.closing(Bridge(size, guests)) as bridge:
        say("ready")
        for line in iter(sys.stdin.readline, ""):
            say(json.dumps(bridge.measure(float(line))))


if __name__ == "__main__":
    main()
