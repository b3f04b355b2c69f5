# SPDX-License-Identifier: Apache-2.0
"""An engine, what is at the other end of its uplink, and three guests of whose memory every byte is known (canaries.py).

                    ┌─ attacker  direct                 OnNic   a veth, with a program that leads into pairs
    wire ── engine ─┼─ third     direct, in VLAN 5      OnTap   a TAP, with a program that leads into queues
                    └─ peer      switched

Frames of nobody (strangers.py) are sent between those that each guest is due: of these each has to come, in the order of its
path, and all that were sent are counted somewhere.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from tests.direct.harness_nic import Nic
from tests.hostile.arena import PATIENCE, until, until_equal
from tests.vm.lab.canaries import ANY_TIME, Watched, letter
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from tests.vm.lab.strangers import EVERYBODY, STRANGER, VLANS, WIDE, anything, overlong
from tests.vm.test_direct import DIRECT, is_placed
from tests.vm.test_direct_tap import host, is_told_of
from tests.vm.test_xdp import UPLINK, WIRE, station, tagged, vm
from vmq.abi.ethernet import ETH_HLEN, ETH_TYPE_OFFSET, VLAN_HLEN
from vmq.guest.driver import HEADER

MTU = "mtu = 1500"
VMS = {"attacker": f"{DIRECT}\n{MTU}", "third": f"vlan = 5\n{DIRECT}\n{MTU}", "peer": MTU}
PLACED = "attacker", "third"
SIZES = [60, 61, 333, 1000, 1514]
QUEUE = 2  # of a NIC, where a VM has one for its own
ROUND = 24  # frames to each guest, and three times as many to nobody
Ends = tuple[Namespace, Namespace]
Due = list[tuple[bytes, bytes]]  # as a frame is sent (by another: nothing), and as its guest is to get it


class Stage:
    """All of it; `verdict_of` names what a program counts of the frames that it leads to a VM that is direct."""

    uplink, verdict_of = "", ""
    enters_in_order = True
    takes_groups = True  # also while it is direct
    vms = VMS

    def __init__(self, folder: Path, ends: Ends) -> None:
        self.folder, self.draw = folder, random.Random(1)
        self.gone: list[Watched] = []  # guests that are not there any more; the test still has their memory
        self._sent, self._lock = 0, threading.Lock()
        self._stack = ExitStack()
        try:
            self.prepare(ends)
            self.engine = self._stack.enter_context(EngineProcess(folder, self.configuration(), ends[0]))
            self.wire: socket.socket = self._stack.enter_context(self.opened(ends))
            self.guests = {name: self.new(name, seed).start() for seed, name in enumerate(VMS)}
            for name in PLACED:
                self.placed(name)
        except BaseException:
            self._stack.close()
            raise

    # --- what kinds differ in ---------------------------------------------------------------------------------

    def prepare(self, ends: Ends) -> None:
        """Make what the engine finds."""

    def opened(self, ends: Ends) -> AbstractContextManager[socket.socket]:
        """Where frames are sent; the engine runs."""
        raise NotImplementedError

    def arrived(self) -> int:
        """How many of the frames that were sent are counted, as what they are."""
        raise NotImplementedError

    def new(self, name: str, seed: int, **options: Any) -> Watched:
        """A guest that is not there yet."""
        made = Watched(self.folder, name, seed, **options)
        self._stack.callback(made.close)
        return made

    # --- what is sent, and what comes ---------------------------------------------------------------------------

    def configuration(self, **other: str) -> str:
        return self.uplink + "".join(vm(name, keys) for name, keys in (self.vms | other).items())

    def placed(self, name: str, wanted: str = "direct") -> None:
        until(partial(is_placed, self.engine, name, wanted))

    def send(self, data: bytes) -> None:
        self.wire.send(data)
        with self._lock:
            self._sent += 1

    def another(self, name: str, seed: int, **options: Any) -> None:
        """A guest hangs up, and another takes its place."""
        old = self.guests[name]
        old.guest.frontend.disconnect()
        self.engine.wait_for(name, "listening")
        old.gives_up()
        self.gone.append(old)
        self.guests[name] = self.new(name, seed, **options).start()
        self.placed(name)

    def due(self, name: str, sizes: Sequence[int]) -> Due:
        """The next frames of a guest."""
        letters = self.guests[name].letters(WIRE, sizes)
        return [(tagged(one, VLANS[name]) if VLANS[name] else one, one) for one in letters]

    def own(self, *, sizes: Sequence[int] = SIZES, count: int = ROUND) -> dict[str, Due]:
        """So many frames to each guest."""
        chosen = list(itertools.islice(itertools.cycle(sizes), count))
        return {name: self.due(name, chosen) for name in self.guests}

    def round(self, foreign: Sequence[bytes], dues: dict[str, Due], *, in_order: bool = True) -> None:
        """Frames of nobody between those of each guest; all of these come, once."""
        streams = [foreign[0::3], foreign[1::3], foreign[2::3]]
        streams += [[sent for sent, _ in due if sent] for due in dues.values()]
        for together in itertools.zip_longest(*streams):
            for one in together:
                if one is not None:
                    self.send(one)
        for name, due in dues.items():
            self.guests[name].gets([got for _, got in due], in_order=in_order)

    def to_all(self) -> dict[str, Due]:
        """Frames to each guest, and to all of a VLAN between them: who is there gets a copy."""
        dues = self.own()
        for vlan in (0, 5):
            members = [name for name in dues if VLANS[name] == vlan]
            for number, size in enumerate(SIZES):
                data = letter(EVERYBODY, WIRE, number, size, "everybody")
                for name in members:
                    sent = tagged(data, vlan) if vlan else data
                    dues[name].insert(4 * number, (sent if name == members[0] else b"", data))
        return dues

    # --- what must hold -----------------------------------------------------------------------------------------

    def verdict(self) -> int:
        """Frames that the program has led to VMs that are direct."""
        return int(self.engine.show("uplinks")["wire"]["verdicts"][self.verdict_of])

    def too_long(self) -> int:
        """Frames that were counted so, for whomever they were."""
        drops = [row["drops"] for row in self.engine.show("queues").values()]
        found = sum(one.get("to_guest_too_long", 0) for one in drops)
        return found + int(self.engine.show("uplinks")["wire"]["drops"].get("from_wire_too_long", 0))

    def placement_told(self) -> list[str]:
        """Why VMs have become switched so far."""
        told = self.engine.ask("events")
        return [one["why"] for one in told if one["event"] == "placement" and one["placement"] == "switched"]

    def balances(self) -> None:
        """Every frame that was sent is counted once, and every one that was counted got somewhere, or was dropped by name."""
        until_equal(self.arrived, self._sent)
        row = self.engine.show("uplinks")["wire"]
        assert row["frames_from_wire"] == row["forwarded"] + sum(row["drops"].values())
        until(lambda: all(map(is_told_of, self.engine.show("queues").values())))  # of a pair's, once a second

    def check(self, *names: str) -> None:
        """Of these guests, or all: nothing is in their memory but what are theirs."""
        for name in names or self.guests:
            self.guests[name].check({*VMS, STRANGER} - {name})
        for one in self.gone:
            one.is_whole()
            one.has_no_secret_of({*VMS, STRANGER} - {one.name})

    def check_at_last(self, *names: str) -> None:
        """Now, and when the engine has ended and nobody is left who could write."""
        self.check(*names)
        self.balances()
        assert "Traceback" not in self.engine.log
        assert self.engine.stop() == 0
        self.check(*names)

    # --- meanwhile ------------------------------------------------------------------------------------------------

    @contextmanager
    def sending(self, frames: Sequence[bytes], *, burst: int, bursts: int) -> Iterator[None]:
        """So many bursts at most, a millisecond apart, so that pairs and rings have room for frames that are due."""
        stop, begun = threading.Event(), threading.Event()

        def send() -> None:
            turns = itertools.cycle(frames)
            for _ in range(bursts):
                for one in itertools.islice(turns, burst):
                    self.send(one)
                begun.set()
                if stop.wait(0.001):
                    break

        thread = threading.Thread(target=send)
        thread.start()
        try:
            assert begun.wait(PATIENCE)
            yield
        finally:
            stop.set()
            thread.join()

    def flood(self) -> AbstractContextManager[None]:
        """Frames of nobody, without end."""
        return self.sending([anything(self.draw) for _ in range(1000)], burst=16, bursts=1 << 30)

    def late(self, name: str) -> AbstractContextManager[None]:
        """Frames to a guest that comes or goes, fewer than it has buffers."""
        return self.sending(
            [letter(name, ANY_TIME, number, 1000) for number in range(100)], burst=1, bursts=100
        )

    def goes_on_until(self, condition: Any, *, in_order: bool) -> None:
        """Rounds of a few frames until something holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            self.round([], self.own(count=8), in_order=in_order)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()


class OnNic(Stage):
    """A veth is the NIC. Entering keeps no order (docs/adr/0011)."""

    uplink, verdict_of = UPLINK, "direct"
    enters_in_order = False

    def prepare(self, ends: Ends) -> None:
        for end, device in zip(ends, ("wire0", "host0"), strict=True):
            end.run("ip", "link", "set", device, "mtu", str(WIDE))

    def opened(self, ends: Ends) -> AbstractContextManager[socket.socket]:
        return station(ends[1])

    def arrived(self) -> int:
        return sum(self.engine.show("uplinks")["wire"]["verdicts"].values())


class OnNicQueue(OnNic):
    """The attacker has a receive queue of the NIC, by which all frames come that no rule is for; the third a pair."""

    takes_groups = False
    vms = VMS | {"attacker": f"{VMS['attacker']}\nnic_queue = {QUEUE}"}

    def prepare(self, ends: Ends) -> None:
        near, far = ends
        near.run("ip", "link", "delete", "wire0")
        self._stack.enter_context(Nic(near, far, device="wire0", otherwise=QUEUE))
        super().prepare(ends)

    def verdict(self) -> int:
        found = self.engine.show("uplinks")["wire"]["verdicts"]
        return int(found["direct"] + found["own_queue"])


class OnTap(Stage):
    """The host's stack sends. Frames longer than the device was when the engine came end in its lane, others in their queue."""

    uplink, verdict_of = '[uplink.wire]\nkind = "tap"\ndevice = "vmqtap0"\n', "own_queue"
    narrow = 2000  # the device's MTU at first

    def prepare(self, ends: Ends) -> None:
        near = ends[0]
        near.run("ip", "tuntap", "add", "vmqtap0", "mode", "tap", "multi_queue")
        near.run("ip", "link", "set", "vmqtap0", "mtu", str(self.narrow), "txqueuelen", "8192")

    @contextmanager
    def opened(self, ends: Ends) -> Iterator[socket.socket]:
        ends[0].run("ip", "link", "set", "vmqtap0", "mtu", str(WIDE))
        with host(ends[0]) as one:
            yield one

    def arrived(self) -> int:
        return int(self.engine.show("uplinks")["wire"]["frames_from_wire"])

    def new(self, name: str, seed: int, **options: Any) -> Watched:
        """Behind what is looked at first, a frame of its own that is too long is read into what it has posted."""
        made = super().new(name, seed, **options)
        kept = 0 if VLANS[name] else VLAN_HLEN  # a tag, which such a guest would get
        data = bytes(HEADER) + overlong(name, WIDE)
        made.spilt = HEADER + ETH_TYPE_OFFSET + kept, data[: HEADER + 1500 + ETH_HLEN + kept]
        return made
