# SPDX-License-Identifier: Apache-2.0
"""One long random life of an engine, the same in every mode, as hashes: `python -m tests.dataplane.trace SEED STEPS`.

Three VMs on two processors, a lossless wire with a sink; frames of every kind, good, bad and hostile; rings that are
disabled, misused and started anew; filters that move. Printed are hashes of all guest memory, of all counters and
state rows without addresses, of what left and of the events. Compiled and interpreted code must agree on each.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from typing import Any

import numpy as np

from tests.dataplane.rig import (
    ALL_FEATURES,
    BROADCAST,
    EVENT_IDX,
    HEADER,
    LINK_LOCAL,
    MERGEABLE,
    NOBODY,
    A,
    B,
    C,
    D,
    Rig,
    Vm,
    frame,
)
from vmq.abi.ethernet import mac_number

COUNTERS = ("rounds", "bursts", "event_head", "frame_count", "delivery_count", "claim_count")
EDGES = (
    0,
    1,
    0x10000,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 16,
    (1 << 64) - 1,
)


class Trace:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rig = rig = Rig(workers=2, handover=8192)
        chosen = self.random.choices([A, B, C, BROADCAST, NOBODY, LINK_LOCAL], k=400)
        frames = [
            frame(
                to, D, self.random.choice((60, 300, 1514, 1600)), self.random.choice((None, None, 0x2000, 7))
            )
            for to in chosen
        ]
        wire = rig.uplink(frames=frames, lossless=True, laps=0, sink=1 << 14)
        learn = [(0xFF_FFFF, mac_number(D) & 0xFF_FFFF)]
        for place, (mac, features, vlan) in enumerate(
            ((A, ALL_FEATURES, 0), (B, EVENT_IDX, 0), (C, MERGEABLE, 7))
        ):
            regions = [(0x10000, 1 << 15), (0x18000, 1 << 15), (0x40000, 1 << 22)]
            rig.vm(mac, uplink=wire, vlan=vlan, features=features, workers=(place % 2,), size=32, regions=regions,
                   learn=learn if place == 0 else (), learn_left=1)  # fmt: skip
        self.left: list[str] = []
        self.events: list[Any] = []
        rig.publish()

    def steps(self, count: int) -> None:
        actions = (
            [self.send] * 6
            + [self.post] * 4
            + [self.raw] * 2
            + [self.suppress, self.toggle, self.restart, self.move]
        )
        for _ in range(count):
            vm = self.random.choice(self.rig.vms)
            self.random.choice(actions)(vm)
            self.rig.step(self.random.randrange(2))
            if self.random.random() < 0.2:
                self.collect(vm)

    def send(self, vm: Vm) -> None:
        """Frames good and bad."""
        own = {0: A, 1: B, 2: C}[vm.number]
        to = self.random.choice([A, B, C, NOBODY, BROADCAST, LINK_LOCAL, own])
        source = self.random.choice([own] * 8 + [D, NOBODY, BROADCAST, "00:00:00:00:00:00"])
        size = self.random.choice([14, 60, 61, 200, 1514, 1515, 17])
        vlan = self.random.choice([None] * 4 + [0, 7, 0x6000])
        header = bytes(HEADER) if self.random.random() < 0.9 else self.random.randbytes(HEADER)
        if len(vm.from_guest.free) < 5:
            return
        cuts = sorted({self.random.randrange(1, size + HEADER) for _ in range(self.random.randrange(4))})
        vm.send(frame(to, source, size, vlan), header=header, cuts=cuts, indirect=self.random.random() < 0.3)

    def post(self, vm: Vm) -> None:
        size = self.random.choice([8, 12, 64, 100, 600, 1526, 2048])
        vm.post(min(len(vm.to_guest.free), self.random.randrange(12)), size)

    def raw(self, vm: Vm) -> None:
        """Descriptors of numbers at the edges."""
        ring = self.random.choice([vm.to_guest, vm.from_guest])
        if not ring.free:
            return
        place = ring.free.popleft()
        address = (self.random.choice([*EDGES, 0x17FFF, 0x1FFFF, 0x40000]) + self.random.randrange(-1, 2)) % (
            1 << 64
        )
        length = self.random.choice([0, 1, 12, 16, 26, 32, 200, (1 << 31) - 1, (1 << 32) - 1])
        if ring.to_guest:  # nothing of it may be memory: there is no shadow of what it would hold
            address |= 1 << 50
        ring.describe(
            place, address, length, self.random.randrange(8), self.random.choice([place, 0, 31, 32, 65535])
        )
        ring.offer(self.random.choice([place] * 6 + [32, 65535]) if self.random.random() < 0.9 else place)
        if not ring.to_guest and self.random.random() < 0.02:
            ring.show(self.random.randrange(65536))

    def suppress(self, vm: Vm) -> None:
        ring = self.random.choice([vm.to_guest, vm.from_guest])
        ring.set_flags(self.random.randrange(2))
        ring.set_used_event(
            self.random.choice([0, ring.index, ring.index + 3, 65535, self.random.randrange(65536)])
        )

    def toggle(self, vm: Vm) -> None:
        ring = self.random.choice([vm.to_guest, vm.from_guest])
        ring.enabled = self.random.random() < 0.7
        self.rig.publish()

    def restart(self, vm: Vm) -> None:
        """The driver starts anew, somewhere near the wrap of the indices."""
        self.collect(vm)
        for ring in (vm.to_guest, vm.from_guest):
            for _, buffers in ring.chains.values():
                for address, size in buffers:
                    vm.memory.allow(address, size, allowed=False)
                    vm.memory.release(address, size)
            ring.reset(self.random.choice([0, 65530, self.random.randrange(65536)]))
        vm.begin()
        self.rig.publish()

    def move(self, vm: Vm) -> None:
        """To another VLAN, another address."""
        vm.vlan = self.random.choice([0, 0, 7])
        vm.macs = [mac_number({0: A, 1: B, 2: C}[vm.number])]
        self.rig.publish()

    def collect(self, vm: Vm) -> None:
        for ring in (vm.to_guest, vm.from_guest):
            for head, _, buffers in ring.harvest():
                for address, size in buffers:
                    vm.memory.release(address, size)
                if not buffers and head < ring.size and head not in ring.free:
                    ring.free.append(head)
        self.events += [self.rig.events(worker) for worker in range(2)]
        self.left += [data.hex() for worker in range(2) for data in self.rig.left(0, worker)]

    def result(self) -> dict[str, Any]:
        rows = self.rig.segment.rows
        state = {
            name: _plain(rows[name]) for name in ("queue_state", "ring_state", "lane_state", "port_state")
        }
        state["workers"] = rows["workers"][list(COUNTERS)].tolist()
        for vm in self.rig.vms:
            self.collect(vm)
            state[f"calls {vm.number}"] = [ring.called() for ring in (vm.to_guest, vm.from_guest)]
        memory = [hashlib.sha256(part).hexdigest() for vm in self.rig.vms for part in vm.memory.contents()]
        drops = {name for vm in self.rig.vms for name in (*vm.drops(), *vm.sent_drops())} | set(
            self.rig.wire_drops()
        )
        totals = rows["queue_state"][["frames_to_guest", "frames_from_guest", "indications"]][:3].tolist()
        found = {
            "memory": memory,
            "left": _hash(self.left),
            "events": _hash(self.events),
            "drops": sorted(drops),
        }
        return found | {name: _hash(value) for name, value in state.items()} | {"totals": totals}


def _plain(rows: Any) -> Any:
    return rows[: 64 if len(rows) > 64 else None].tobytes().hex()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=_default).encode()).hexdigest()


def _default(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def main(seed: int, count: int) -> None:
    trace = Trace(seed)
    trace.steps(count)
    trace.rig.check()
    print(json.dumps(trace.result(), default=_default))
    trace.rig.close()


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:]))
