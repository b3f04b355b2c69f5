# SPDX-License-Identifier: Apache-2.0
"""A VM never gets a byte of a frame that is not its own, whoever writes it, the kernel or the engine, and whatever happens.

The stage is lab/stage.py, once for each tier of direct placement. All memory of each guest is known (lab/canaries.py). Frames of
others are sent between its own, of which each has to come; and every frame that was sent is counted.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.hostile.arena import MACS, PATIENCE, until_equal
from tests.hostile.test_memory import own_region, table
from tests.vm.lab.canaries import Watched, letter
from tests.vm.lab.netns import Namespace
from tests.vm.lab.stage import MTU, PLACED, ROUND, SIZES, Due, OnNic, OnNicQueue, OnTap, Stage
from tests.vm.lab.strangers import (
    STRANGER,
    broadcasts,
    other_addresses,
    other_vlans,
    runts,
    service,
    too_long,
)
from tests.vm.test_direct import DIRECT, is_placed
from tests.vm.test_xdp import WIRE, reload, tagged
from vmq.abi.vhost_user import Request
from vmq.abi.virtio import vring_desc
from vmq.guest.driver import AVAIL
from vmq.guest.race import Flip, Race
from vmq.guest.rings import WRITE

pytestmark = pytest.mark.root
ROAMER = "02:00:00:00:00:55"  # an address that one VM has, then another
POOL = 32 * 2048  # the end of a guest's memory, where descriptors lead that change
ROUNDS = 30
GROUP = b"\xff"  # begins the address of all, which no program leads to one
UNFIT = (
    "none for the kernel",
    "must run",
    "does not run",
    "too short",
)  # what a guest's own descriptors lead to


@pytest.fixture(params=[OnNic, OnNicQueue, OnTap], ids=["xdp", "nic_queue", "tap"])
def stage(
    request: pytest.FixtureRequest, tmp_path: Path, ends: tuple[Namespace, Namespace]
) -> Iterator[Stage]:
    with request.param(tmp_path, ends) as made:
        yield made


# --- frames of nobody, between its own ------------------------------------------------------------------------


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
    "broadcasts": (broadcasts, Stage.to_all),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_frames_for_others_leaves_no_byte_in_a_guest(stage: Stage, flood: str) -> None:
    foreign, own = FLOODS[flood]
    due = 0
    for _ in range(ROUNDS):
        dues = own(stage)
        due += sum(not sent.startswith(GROUP) and bool(sent) for name in PLACED for sent, _ in dues[name])
        stage.round([foreign(stage.draw) for _ in range(3 * ROUND)], dues)
    if flood != "broadcasts" or stage.takes_groups:
        assert all(is_placed(stage.engine, name, "direct") for name in PLACED)
    if flood == "too_long":  # some come as far as a pair or a read, and all are named
        until_equal(stage.too_long, ROUNDS * ROUND * 3)
    else:
        assert stage.verdict() == due
    stage.check_at_last()


@pytest.mark.parametrize("stage", [OnTap], ids=["tap"], indirect=True)
def test_frames_in_several_buffers_leave_those_that_they_did_not_need_as_they_were(stage: Stage) -> None:
    """A read has buffers for the longest frame; most are shorter."""
    stage.another("attacker", 10, buffer_bytes=600)
    for _ in range(ROUNDS):
        stage.round([other_addresses(stage.draw) for _ in range(3 * ROUND)], stage.own())
    assert is_placed(stage.engine, "attacker", "direct")
    stage.check_at_last()


# --- while something changes ----------------------------------------------------------------------------------


def test_reloads_that_make_vms_switched_and_direct_again_leave_no_byte_in_another(stage: Stage) -> None:
    with stage.flood():
        for wanted in ("switched", "direct") * 3:
            keys = {name: stage.vms[name].replace("direct", wanted) for name in PLACED}
            stage.engine.configure(stage.configuration(**keys))
            stage.engine.reload()
            stage.goes_on_until(
                lambda wanted=wanted: all(is_placed(stage.engine, name, wanted) for name in PLACED),
                in_order=stage.enters_in_order,
            )
            stage.round([], stage.own())
    stage.round([], stage.own())
    stage.check_at_last()


@pytest.mark.parametrize("other", ["switched", "direct"])
def test_an_address_that_moves_takes_its_frames_with_it(stage: Stage, other: str) -> None:
    """From then on its former owner has no byte of them."""
    both = stage.configuration(peer=f"{DIRECT.replace('direct', other)}\n{MTU}")
    placed = partial(is_placed, stage.engine, "attacker", "direct")
    with stage.flood():
        for owner in ("peer", "attacker") * 3:
            macs = f'mac = ["{MACS[owner]}", "{ROAMER}"]'
            stage.engine.configure(both.replace(f'mac = "{MACS[owner]}"', macs))
            reload(stage.engine)
            for _ in range(2):  # a processor that had begun a round before has ended it
                stage.round([], stage.own(), in_order=stage.enters_in_order)
            letters = [letter(ROAMER, WIRE, number, size, owner) for number, size in enumerate(SIZES)]
            stage.round([], {owner: [(one, one) for one in letters]})
            stage.goes_on_until(
                lambda: placed() and is_placed(stage.engine, "peer", other), in_order=stage.enters_in_order
            )
    stage.round([], stage.own())
    stage.check_at_last()


@pytest.mark.parametrize("way", ["table", "regions"])
def test_memory_that_was_taken_back_is_not_written_any_more(stage: Stage, way: str) -> None:
    """A whole new table while its rings stand still; or all regions taken away while they run."""
    with stage.flood():
        for seed in range(10, 13):
            old, new = stage.guests["attacker"], stage.new("attacker", seed)
            front = new.guest.frontend = old.guest.frontend
            with stage.late("attacker"):
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
    with stage.flood():
        for seed in range(10, 13):
            old = stage.guests["attacker"]
            with stage.late("attacker"):
                old.guest.frontend.disconnect()
                stage.engine.wait_for("attacker", "listening")
                old.fill(seed + 100)
                old.gives_up()
                stage.gone.append(old)
            stage.guests["attacker"] = stage.new("attacker", seed)
            with stage.late("attacker"):
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
    assert stage.verdict() >= ROUNDS * 30
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
        with stage.flood(), Race(hostile.guest.memory, flips(hostile, stage.draw, sane=False)):
            while is_placed(stage.engine, "attacker", "direct"):
                assert time.monotonic() < deadline
                pressed(stage, 1)
            pressed(stage, ROUNDS // 3)
        hostile.guest.stop()
        hostile.guest.reset()
        hostile.guest.start()
        stage.engine.wait_for("attacker", "running")
    told = stage.placement_told()
    assert sum(any(one in why for one in UNFIT) for why in told) == 2, told
    hostile.has_no_secret_of({"third", "peer", STRANGER})
    stage.check_at_last("third", "peer")
