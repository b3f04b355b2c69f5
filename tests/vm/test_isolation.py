# SPDX-License-Identifier: Apache-2.0
"""A VM never gets a byte of a frame that is not its own, whoever writes it, the kernel or the engine, and whatever happens.

    host0 ─ wire0 ─┬─ attacker  direct: by a pair; or by a NIC queue of its own, by which all frames of others come, too
                   ├─ third     direct, in VLAN 5
                   └─ peer      switched

All memory of each guest is known (lab/canaries.py). Frames of others are sent between its own, of which each has to come.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from tests.direct.harness_nic import Nic
from tests.hostile.arena import MACS, PATIENCE, until, until_equal
from tests.hostile.test_memory import own_region, table
from tests.vm.lab.canaries import ANY_TIME, Watched, letter
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from tests.vm.test_direct import DIRECT, is_placed, placement
from tests.vm.test_xdp import UPLINK, WIRE, reload, station, tagged, vm
from vmq.abi.vhost_user import Request
from vmq.abi.virtio import vring_desc
from vmq.guest.driver import AVAIL
from vmq.guest.race import Flip, Race
from vmq.guest.rings import WRITE

pytestmark = pytest.mark.root
MTU = "mtu = 1500"
QUEUE = 2
WIDE = 3000  # of the wire: what is too long for a VM has to come as far as the programs
VMS = {"attacker": f"{DIRECT}\n{MTU}", "third": f"vlan = 5\n{DIRECT}\n{MTU}", "peer": MTU}
PLACED = "attacker", "third"
STRANGER = "stranger"  # whose frames nobody is due
ROAMER = "02:00:00:00:00:55"  # an address that one VM has, then another
POOL = 32 * 2048  # the end of a guest's memory, where descriptors lead that change
SIZES = [60, 61, 333, 1000, 1514]
ROUNDS, ROUND = 30, 24  # rounds of so many frames to each guest, and three times as many to nobody
Due = list[tuple[bytes, bytes]]  # as a frame is sent, and as its guest is to get it


class Stage:
    """An engine, its wire and three guests, of which two are direct; `own`: the attacker by a NIC queue of its own."""

    def __init__(self, folder: Path, ends: tuple[Namespace, Namespace], *, own: bool = False) -> None:
        near, far = ends
        self.vms = VMS | ({"attacker": f"{VMS['attacker']}\nnic_queue = {QUEUE}"} if own else {})
        near.run("ip", "link", "set", "wire0", "mtu", str(WIDE))
        far.run("ip", "link", "set", "host0", "mtu", str(WIDE))
        self.folder, self.draw = folder, random.Random(1)
        self.gone: list[Watched] = []  # guests that are not there any more; the test still has their memory
        self._stack = ExitStack()
        try:
            self.engine = self._stack.enter_context(EngineProcess(folder, self.configuration(), near))
            self.wire: socket.socket = self._stack.enter_context(station(far))
            self.guests = {name: self.new(name, seed).start() for seed, name in enumerate(VMS)}
            for name in PLACED:
                self.placed(name)
        except BaseException:
            self._stack.close()
            raise

    def configuration(self, **other: str) -> str:
        return UPLINK + "".join(vm(name, keys) for name, keys in (self.vms | other).items())

    def new(self, name: str, seed: int, **options: Any) -> Watched:
        """A guest that is not there yet."""
        made = Watched(self.folder, name, seed, **options)
        self._stack.callback(made.close)
        return made

    def placed(self, name: str, wanted: str = "direct") -> None:
        until(partial(is_placed, self.engine, name, wanted))

    def due(self, name: str, sizes: Sequence[int]) -> Due:
        """The next frames of a guest."""
        letters = self.guests[name].letters(WIRE, sizes)
        return [(tagged(one, 5) if name == "third" else one, one) for one in letters]

    def round(self, foreign: Sequence[bytes], dues: dict[str, Due], *, in_order: bool = True) -> None:
        """Frames of nobody between those of each guest; all of these come, once."""
        streams = [foreign[0::3], foreign[1::3], foreign[2::3]]
        streams += [[sent for sent, _ in due] for due in dues.values()]
        for together in itertools.zip_longest(*streams):
            for one in together:
                if one is not None:
                    self.wire.send(one)
        for name, due in dues.items():
            self.guests[name].gets([got for _, got in due], in_order=in_order)

    def own(self, *, sizes: Sequence[int] = SIZES, count: int = ROUND) -> dict[str, Due]:
        """So many frames to each guest."""
        chosen = list(itertools.islice(itertools.cycle(sizes), count))
        return {name: self.due(name, chosen) for name in self.guests}

    def led(self) -> int:
        """Frames that the NIC's program has led to where the kernel places them."""
        verdicts = self.engine.show("uplinks")["wire"]["verdicts"]
        return int(verdicts["direct"] + verdicts["own_queue"])

    def too_long(self) -> int:
        """Frames that were counted so, of all guests."""
        return sum(row["drops"].get("to_guest_too_long", 0) for row in self.engine.show("queues").values())

    def check(self, *names: str) -> None:
        """Of these guests, or all: nothing is in their memory but what is theirs."""
        for name in names or self.guests:
            self.guests[name].check({*VMS, STRANGER} - {name})
        for one in self.gone:
            one.is_whole()
            one.has_no_secret_of({*VMS, STRANGER} - {one.name})

    def check_at_last(self, *names: str) -> None:
        """Now, and when the engine has ended and nobody is left who could write."""
        self.check(*names)
        assert "Traceback" not in self.engine.log
        assert self.engine.stop() == 0
        self.check(*names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()


@pytest.fixture(params=["pair", "nic_queue"])
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "pair":
        with Stage(tmp_path, request.getfixturevalue("ends")) as made:
            yield made
        return
    with Namespace("near") as near, Namespace("far") as far:
        for end in (near, far):
            end.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        with Nic(near, far, device="wire0", otherwise=QUEUE), Stage(tmp_path, (near, far), own=True) as made:
            assert placement(made.engine, "attacker")["why"] == "by a NIC queue of its own"
            yield made


# --- frames of nobody -----------------------------------------------------------------------------------------


def lost(to: str, size: int, number: int = 0) -> bytes:
    """A frame that nobody is due."""
    return letter(to, WIRE, number, size, STRANGER)


def service(data: bytes, tci: int, kind: bytes = b"\x88\xa8") -> bytes:
    """With a tag that is none of 802.1Q's: payload, for everybody here."""
    return data[:12] + kind + tci.to_bytes(2, "big") + data[12:]


def near_by(draw: random.Random) -> str:
    """A VM's address but for one bit, which does not make a group of it."""
    octets = bytearray.fromhex(MACS[draw.choice(list(VMS))].replace(":", ""))
    bit = draw.choice([bit for bit in range(48) if bit != 0])
    octets[bit // 8] ^= 1 << bit % 8
    return octets.hex(":")


def other_addresses(draw: random.Random) -> bytes:
    """Another's address, in no VLAN or in that of a VM."""
    taken = {MACS[name] for name in VMS}
    address = next(one for one in iter(lambda: near_by(draw), None) if one not in taken)
    data = lost(address, draw.randrange(60, 1515))
    return draw.choice([data, tagged(data, 5)])


FOREIGN_TAGS: dict[str, list[Callable[[bytes], bytes]]] = {
    "attacker": [
        *(partial(tagged, tci=tci) for tci in (1, 5, 7, 0xE005, 4094, 4095)),
        lambda data: tagged(tagged(data, 0), 5),
        lambda data: tagged(service(data, 0), 7),
    ],
    "third": [
        lambda data: data,
        *(partial(tagged, tci=tci) for tci in (0, 0x6000, 4, 6, 0xE007, 4094, 4095, 0x0500)),
        *(partial(service, tci=tci) for tci in (0, 5)),
        lambda data: service(tagged(data, 5), 5),
        lambda data: service(data, 5, b"\x91\x00"),
        lambda data: tagged(tagged(data, 5), 6),
        lambda data: tagged(tagged(data, 5), 0),
    ],
    "ff:ff:ff:ff:ff:ff": [partial(tagged, tci=tci) for tci in (4, 6, 4094)],
}
FOREIGN_TAGS["peer"] = FOREIGN_TAGS["attacker"]


def other_vlans(draw: random.Random) -> bytes:
    to = draw.choice(list(FOREIGN_TAGS))
    return draw.choice(FOREIGN_TAGS[to])(lost(to, draw.randrange(60, 1500)))


def too_long(draw: random.Random) -> bytes:
    """Each VM's address in its VLAN, and a byte or more above its MTU."""
    to = draw.choice(list(VMS))
    size = draw.choice([1515, 1516, 1518, 1519, 1792, 1793, 2048, WIDE + 14, draw.randrange(1515, WIDE)])
    return tagged(lost(to, size), 5) if to == "third" else lost(to, size)


def runts(draw: random.Random) -> bytes:
    """Short frames of others, and frames that end in their tags."""
    if draw.random() < 0.5:
        return other_addresses(draw)[: draw.randrange(14, 60)]
    return tagged(lost(draw.choice(list(VMS)), 60), draw.choice([0, 5]))[: draw.randrange(14, 18)]


def anything(draw: random.Random) -> bytes:
    return draw.choice([other_addresses, other_vlans, too_long, runts])(draw)


# --- frames of its own, each with every tag that its guest is due ---------------------------------------------


def with_tags(stage: Stage) -> dict[str, Due]:
    """A service tag is payload, a tag without a VLAN stays; that of the VM's VLAN goes, whatever its priority."""
    plain: list[Callable[[bytes], bytes]] = [
        lambda data: data,
        *(partial(tagged, tci=tci) for tci in (0, 0x6000)),
        *(partial(service, tci=tci) for tci in (0, 5)),
        lambda data: tagged(tagged(data, 7), 0),
    ]
    inner: list[Callable[[bytes], bytes]] = [
        lambda data: data,
        partial(tagged, tci=9),
        partial(service, tci=5),
    ]
    found: dict[str, Due] = {}
    for name, due in stage.own(sizes=[60, 900, 1510]).items():
        forms = inner if name == "third" else plain
        got = [form(data) for form, (_, data) in zip(itertools.cycle(forms), due, strict=False)]
        tcis = itertools.cycle((5, 0xA005))
        found[name] = [(tagged(one, next(tcis)) if name == "third" else one, one) for one in got]
    return found


FLOODS: dict[str, tuple[Callable[[random.Random], bytes], Callable[[Stage], dict[str, Due]]]] = {
    "other_addresses": (other_addresses, Stage.own),
    "other_vlans": (other_vlans, with_tags),
    "too_long": (too_long, Stage.own),
    "runts": (runts, lambda stage: stage.own(sizes=range(14, 60), count=46)),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_frames_for_others_leaves_no_byte_in_a_guest(stage: Stage, flood: str) -> None:
    foreign, own = FLOODS[flood]
    due = 0
    for _ in range(ROUNDS):
        dues = own(stage)
        due += sum(len(dues[name]) for name in PLACED)
        stage.round([foreign(stage.draw) for _ in range(3 * ROUND)], dues)
    assert all(is_placed(stage.engine, name, "direct") for name in PLACED)
    if flood == "too_long":  # some come as far as a pair, and all are named
        until_equal(stage.too_long, ROUNDS * ROUND * 3)
    else:
        assert stage.led() == due
    stage.check_at_last()


# --- while something changes ----------------------------------------------------------------------------------


@contextmanager
def sending(stage: Stage, frames: Sequence[bytes], *, burst: int, bursts: int) -> Iterator[None]:
    """So many bursts at most, a millisecond apart, so that pairs and rings have room for frames that are due."""
    stop, begun = threading.Event(), threading.Event()

    def send() -> None:
        turns = itertools.cycle(frames)
        for _ in range(bursts):
            for one in itertools.islice(turns, burst):
                stage.wire.send(one)
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


def flood(stage: Stage) -> AbstractContextManager[None]:
    """Frames of nobody, without end."""
    return sending(stage, [anything(stage.draw) for _ in range(1000)], burst=16, bursts=1 << 30)


def late(stage: Stage, name: str) -> AbstractContextManager[None]:
    """Frames to a guest that comes or goes, fewer than it has buffers."""
    return sending(
        stage, [letter(name, ANY_TIME, number, 1000) for number in range(100)], burst=1, bursts=100
    )


def test_reloads_that_make_vms_switched_and_direct_again_leave_no_byte_in_another(stage: Stage) -> None:
    with flood(stage):
        for wanted in ("switched", "direct") * 3:
            keys = {name: stage.vms[name].replace("direct", wanted) for name in PLACED}
            stage.engine.configure(stage.configuration(**keys))
            stage.engine.reload()
            deadline = time.monotonic() + PATIENCE
            while not all(is_placed(stage.engine, name, wanted) for name in PLACED):
                assert time.monotonic() < deadline
                stage.round([], stage.own(count=8), in_order=False)  # entering may turn two of them round
            stage.round([], stage.own())
    stage.round([], stage.own())
    stage.check_at_last()


def test_an_address_that_moves_takes_its_frames_with_it(stage: Stage) -> None:
    """From then on its former owner has no byte of them."""
    with flood(stage):
        for owner in ("peer", "attacker") * 3:
            both = f'mac = ["{MACS[owner]}", "{ROAMER}"]'
            stage.engine.configure(stage.configuration().replace(f'mac = "{MACS[owner]}"', both))
            reload(stage.engine)
            for _ in range(2):  # a processor that had begun a round before has ended it
                stage.round([], stage.own())
            letters = [letter(ROAMER, WIRE, number, size, owner) for number, size in enumerate(SIZES)]
            stage.round([], {owner: [(one, one) for one in letters]})
    stage.round([], stage.own())
    stage.check_at_last()


@pytest.mark.parametrize("way", ["table", "regions"])
def test_memory_that_was_taken_back_is_not_written_any_more(stage: Stage, way: str) -> None:
    """A whole new table while its rings stand still; or all regions taken away while they run."""
    with flood(stage):
        for seed in range(10, 13):
            old, new = stage.guests["attacker"], stage.new("attacker", seed)
            front = new.guest.frontend = old.guest.frontend
            with late(stage, "attacker"):
                if way == "table":
                    old.guest.stop()
                    front.tell(Request.SET_MEM_TABLE, table(own_region(new.guest)), [new.guest.memory.fd])
                else:
                    front.remove_region(old.guest.memory.regions[0])
                    old.guest.stop()
                old.gives_up()
                stage.gone.append(old)
                stage.guests["attacker"] = new.start()
                stage.placed("attacker")
            stage.round([], stage.own())
    stage.round([], stage.own())
    stage.check_at_last()


def test_memory_of_a_guest_that_hung_up_is_not_written_while_another_has_its_place(stage: Stage) -> None:
    with flood(stage):
        for seed in range(10, 13):
            old = stage.guests["attacker"]
            with late(stage, "attacker"):
                old.guest.frontend.disconnect()
                stage.engine.wait_for("attacker", "listening")
                old.fill(seed + 100)
                old.gives_up()
                stage.gone.append(old)
            stage.guests["attacker"] = stage.new("attacker", seed)
            with late(stage, "attacker"):
                stage.guests["attacker"].start()
                stage.placed("attacker")
            stage.round([], stage.own())
    stage.round([], stage.own())
    stage.check_at_last()


# --- a guest that changes what it has posted ------------------------------------------------------------------


def flips(one: Watched, draw: random.Random, *, sane: bool) -> list[Flip]:
    """Its descriptors and available entries, now as they should be, now others: `sane` ones, or whatever comes."""
    ring, size = one.incoming, one.incoming.size
    entries = list(range(size))
    rows = np.zeros((2, size), vring_desc)
    rows["addr"] = [ring.buffer(slot) for slot in entries]
    rows["len"], rows["flags"] = ring.shape.buffer_bytes, WRITE
    if sane:
        pool = one.guest.memory.size - POOL
        rows["addr"][1] = [pool + slot % (POOL // 2048) * 2048 for slot in entries]
        rows["len"][1] = 1600
        heads = entries[1:] + entries[:1]
    else:
        whole = np.frombuffer(draw.randbytes(rows[1].nbytes), vring_desc)
        near = np.array([draw.randrange(2 * one.guest.memory.size) for _ in entries], np.uint64)
        rows[1] = whole
        rows["addr"][1] = np.where(near % np.uint64(2), near, whole["addr"])
        heads = [draw.choice([entry, draw.randrange(size), draw.randrange(1 << 16)]) for entry in entries]
    both = [np.array(numbers, np.uint16).tobytes() for numbers in (entries, heads)]
    table = [rows[which].tobytes() for which in range(2)]
    steps = [slice(start, start + 8) for start in range(0, rows[0].nbytes, 8)]  # a word at a time
    found = [Flip(ring.desc_guest + step.start, table[0][step], table[1][step]) for step in steps]
    return [*found, Flip(ring.avail_guest + AVAIL, *both)]


def pressed(stage: Stage, rounds: int) -> None:
    """Frames for the attacker between those of the others, which get theirs; its ring is full again each time."""
    hostile = stage.guests["attacker"]
    for number in range(rounds):
        dues = {name: stage.due(name, SIZES * 2) for name in ("third", "peer")}
        stage.round([letter("attacker", WIRE, number, 1000) for _ in range(30)], dues)
        hostile.incoming.show(hostile.incoming.used_index + hostile.incoming.size)


def test_descriptors_that_change_while_frames_land_hurt_nobody_else(stage: Stage) -> None:
    """Sane values: it stays direct, and nothing is written but what one of them names."""
    hostile = stage.guests["attacker"]
    buffers = hostile.incoming.buffers_guest, hostile.incoming.size * hostile.incoming.shape.buffer_bytes
    with Race(hostile.guest.memory, flips(hostile, stage.draw, sane=True)):
        pressed(stage, ROUNDS)
    assert is_placed(stage.engine, "attacker", "direct")
    assert stage.led() >= ROUNDS * 30
    assert hostile.incoming.used_index > 0
    hostile.is_whole(buffers, (hostile.guest.memory.size - POOL, POOL))
    hostile.has_no_secret_of({"third", "peer", STRANGER})
    stage.check_at_last("third", "peer")


def test_descriptors_that_become_anything_while_frames_land_hurt_nobody_else(stage: Stage) -> None:
    """It is switched, or stops with a fault, and starts again; the others get each of their frames meanwhile."""
    hostile = stage.guests["attacker"]
    for _ in range(2):
        stage.placed("attacker")
        deadline = time.monotonic() + PATIENCE
        with flood(stage), Race(hostile.guest.memory, flips(hostile, stage.draw, sane=False)):
            while is_placed(stage.engine, "attacker", "direct"):
                assert time.monotonic() < deadline
                pressed(stage, 1)
            pressed(stage, ROUNDS // 3)
        hostile.guest.stop()
        hostile.guest.reset()
        hostile.guest.start()
        stage.engine.wait_for("attacker", "running")
    told = [one["why"] for one in stage.engine.ask("events") if one["event"] == "placement"]
    assert sum("none for the kernel" in why or "must run" in why for why in told) == 2, told
    hostile.has_no_secret_of({"third", "peer", STRANGER})
    stage.check_at_last("third", "peer")
