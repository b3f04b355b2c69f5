# SPDX-License-Identifier: Apache-2.0
"""Which queue of a TAP the kernel chooses, against the engine's table on the same frames; tags beside a frame: tests/vm/test_direct_tap.py."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.dataplane.rig import BROADCAST, LINK_LOCAL, MULTICAST, NOBODY, A, B, C, D, frame
from tests.uplink.test_xdp_program import FILTERS, TAGS, verdicts_of_the_engine
from vmq.abi.ethernet import mac_number
from vmq.uplink import tap_steering
from vmq.uplink.tap_steering import VERDICTS, TapSteering

pytestmark = pytest.mark.root
ORDINARY = 3


class Kernel(TapSteering):
    """The program and its map: each filter has a queue of its own behind the ordinary ones."""

    def __init__(self, filters: list[tuple[str, int]]) -> None:
        super().__init__(ORDINARY)
        self.follow({(mac_number(mac), vlan): ORDINARY + n for n, (mac, vlan) in enumerate(filters)})

    def chosen(self, data: bytes) -> int:
        """The number of the queue, and the one counter that moved agrees."""
        before = self.verdicts()
        queue = self.program.run(data).verdict
        moved = {name: count - before[name] for name, count in self.verdicts().items()}
        own = queue >= ORDINARY
        assert moved == {"own_queue": int(own), "ordinary": int(not own)}
        return queue


@contextmanager
def kernel(filters: list[tuple[str, int]]) -> Iterator[Kernel]:
    made = Kernel(filters)
    try:
        yield made
    finally:
        made.close()


def test_the_kernel_gives_a_vms_queue_what_the_engine_gives_the_vm():
    """Every address in every VLAN, priority and service tags too."""
    cases = list(itertools.product([A, B, C, D, NOBODY, BROADCAST, MULTICAST, LINK_LOCAL], TAGS))
    frames = [frame(to, NOBODY, vlan=tag, fill=number) for number, (to, tag) in enumerate(cases)]
    frames += [frame(A, NOBODY, size=size) for size in (34, 60, 1514)]  # to run it on less is refused
    frames.append(frame(A, NOBODY, kind=0x88A8))  # a service tag is payload
    with kernel(FILTERS) as one:
        own = [one.chosen(data) >= ORDINARY for data in frames]
    assert own == verdicts_of_the_engine(frames)
    assert sum(own) == 2 * 3 + 2 + 1 + 2 + 4


def test_the_same_of_frames_drawn_at_random():
    draw = random.Random(2)
    frames = []
    for number in range(200):
        mac = bytearray.fromhex(draw.choice([A, B, C, D]).replace(":", ""))
        if draw.random() < 0.5:
            bit = draw.randrange(48)
            mac[bit // 8] ^= 1 << bit % 8
        tag = draw.choice([None, draw.randrange(1 << 16), draw.randrange(10) | draw.randrange(16) << 12])
        frames.append(frame(mac.hex(":"), NOBODY, vlan=tag, size=64)[:-4] + number.to_bytes(4, "big"))
    with kernel(FILTERS) as one:
        own = [one.chosen(data) >= ORDINARY for data in frames]
    assert own == verdicts_of_the_engine(frames)
    assert 10 < sum(own) < 150


@pytest.mark.parametrize(("data", "queue"), [
    (frame(A, NOBODY), ORDINARY),
    (frame(B, NOBODY), ORDINARY + 1),
    (frame(C, NOBODY, vlan=5), ORDINARY + 2),
    (frame(C, NOBODY, vlan=0xE006), ORDINARY + 3),
    (frame(A, NOBODY, vlan=0x6000), ORDINARY),
    (frame(A, NOBODY, vlan=0)[:18], ORDINARY),
    (frame(A, NOBODY)[:34], ORDINARY),
], ids=str)  # fmt: skip
def test_a_filter_names_the_queue_of_its_vm(data: bytes, queue: int):
    with kernel(FILTERS) as one:
        assert one.chosen(data) == queue


@pytest.mark.parametrize("data", [frame(A, NOBODY, vlan=0)[:17], frame(C, NOBODY, vlan=5)[:14]], ids=str)
def test_a_frame_that_ends_in_its_tag_is_nobodys(data: bytes):
    with kernel(FILTERS) as one:
        assert one.chosen(data) < ORDINARY


def test_addresses_move_from_queue_to_queue_and_more_than_fit_are_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tap_steering, "FILTERS_MAX", 2)
    a, b, c = ((mac_number(mac), 0) for mac in (A, B, C))
    with kernel([]) as one:
        one.follow({a: 3, b: 4})
        assert [one.chosen(frame(mac, NOBODY)) for mac in (A, B)] == [3, 4]
        one.follow({a: 4})
        assert one.chosen(frame(A, NOBODY)) == 4
        assert one.chosen(frame(B, NOBODY)) < ORDINARY
        with pytest.raises(OSError, match="no more than 2 addresses fit"):
            one.follow({a: 3, b: 4, c: 5})
        one.follow({c: 5})
        assert one.chosen(frame(C, NOBODY)) == 5


def test_frames_of_two_hosts_take_one_queue_and_those_of_many_take_all():
    """Whatever of the frame differs between them besides addresses; the kernel has hashed none of these."""

    def ip(version: int, host: int, payload: int) -> bytes:
        body = bytearray(frame(NOBODY, B, kind={4: 0x0800, 6: 0x86DD}[version], size=90))
        body[30 if version == 4 else 36] = host
        body[80] = payload
        return bytes(body)

    with kernel(FILTERS) as one:
        for version in (4, 6):
            for host in range(8):
                assert len({one.chosen(ip(version, host, payload)) for payload in range(8)}) == 1
            assert {one.chosen(ip(version, host, 0)) for host in range(64)} == set(range(ORDINARY))
        others = {one.chosen(frame(f"02:00:00:00:00:{n:02x}", B, kind=0x88B5)) for n in range(64)}
        assert others == set(range(ORDINARY))


def test_verdicts_have_the_numbers_of_their_names_and_closing_may_be_repeated():
    assert [getattr(tap_steering, name.upper()) for name, _ in VERDICTS] == list(range(len(VERDICTS)))
    made = TapSteering(1)
    made.close()
    made.close()
