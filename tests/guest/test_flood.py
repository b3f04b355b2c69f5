# SPDX-License-Identifier: Apache-2.0
"""The compiled loop: what each counter means, in both modes."""

from __future__ import annotations

import time

import pytest

from tests.guest.conftest import MAC
from vmq.guest.rings import Shape
from vmq.guest.traffic import Traffic

OWN = bytes.fromhex("525400000001")
OTHER = bytes.fromhex("525400000002")
GROUP = bytes.fromhex("ffffffffffff")


def frame(number: int, to: bytes = OWN, size: int = 60) -> bytes:
    return to + OTHER + b"\x88\xb5" + number.to_bytes(4, "big") + bytes([number % 256]) * (size - 18)


def tagged(number: int, vid: int) -> bytes:
    plain = frame(number)
    return plain[:12] + b"\x81\0" + vid.to_bytes(2, "big") + plain[12:]


TABLE = [frame(number, size=60 + 100 * (number % 10)) for number in range(20)]


def settled(traffic: Traffic, name: str, value: int) -> dict[str, int]:
    """The counters once one of them has reached a value."""
    deadline = time.monotonic() + 10
    while traffic.counters()[name] < value:
        assert time.monotonic() < deadline, traffic.counters()
        time.sleep(0.002)
    return traffic.counters()


def some(counters: dict[str, int], *names: str) -> tuple[int, ...]:
    return tuple(counters[name] for name in names)


JUDGED = ("verified", "wrong", "out_of_place", "missing")
CASES = {
    "in order, two laps": (TABLE + TABLE, (40, 0, 0, 0)),
    "one lost": (TABLE[:5] + TABLE[6:], (18, 0, 1, 1)),
    "seven lost": (TABLE[:5] + TABLE[12:], (12, 0, 1, 7)),
    "lost at the end of a lap": (TABLE[:19] + TABLE[:3], (21, 0, 1, 1)),
    "foreign frame": ([*TABLE[:4], frame(99), *TABLE[4:]], (20, 1, 0, 0)),
    "one byte differs": ([TABLE[0], TABLE[1][:-1] + b"!", *TABLE[2:4]], (2, 1, 1, 1)),
    "cut short": ([TABLE[0], TABLE[1][:-1], *TABLE[2:4]], (2, 1, 1, 1)),
    "two swapped": ([TABLE[0], TABLE[2], TABLE[1], TABLE[3]], (1, 0, 3, 20)),
}


@pytest.mark.parametrize("buffer_bytes", [2048, 256])
@pytest.mark.parametrize(("frames", "judged"), CASES.values(), ids=CASES)
def test_frames_are_compared_in_order(backend, make_guest, frames, judged, buffer_bytes):
    """frames = verified + wrong + out_of_place, and a loss is counted once."""
    guest = make_guest(buffer_bytes=buffer_bytes)
    with Traffic(guest, TABLE) as traffic:
        for one in frames:
            assert backend.deliver(one) == 1
        counters = settled(traffic, "frames", len(frames))
    assert some(counters, *JUDGED) == judged
    assert some(counters, "bytes", "stray", "broken", "bad") == (sum(map(len, frames)), 0, 0, 0)


def test_frames_to_others_are_stray(backend, make_guest):
    with Traffic(make_guest(), vlan=7) as traffic:
        for one in (
            frame(1),
            frame(2, GROUP),
            frame(3, OTHER),
            tagged(4, 0),
            tagged(5, 7),
            tagged(6, 8),
            b"x" * 13,
        ):
            backend.deliver(one)
        counters = settled(traffic, "frames", 7)
    assert some(counters, "stray", *JUDGED) == (3, 0, 0, 0, 0)


def test_guest_may_have_several_addresses(backend, make_guest):
    with Traffic(make_guest(), macs=["52:54:00:00:00:02"]) as traffic:
        backend.deliver(frame(1), frame(2, OTHER), frame(3, OTHER[:5] + b"\3"))
        counters = settled(traffic, "frames", 3)
    assert counters["stray"] == 1


def test_unused_and_broken_buffers_are_counted(backend, make_guest):
    with Traffic(make_guest(), TABLE) as traffic:
        head, _ = backend.chain(0)
        backend.give_back(0, [(head, 0)])
        backend.give_back(0, [(999, 60)])
        settled(traffic, "broken", 1)
        backend.deliver(TABLE[0])
        counters = settled(traffic, "verified", 1)
    assert some(counters, "empty", "broken", "bad") == (1, 1, 1)


@pytest.mark.parametrize("count", [0, 3])
def test_impossible_number_of_buffers_is_broken(backend, make_guest, count):
    with Traffic(make_guest()) as traffic:
        head, ((address, _, _),) = backend.chain(0)
        backend.guest(address, 12, bytes(10) + count.to_bytes(2, "little"))
        backend.give_back(0, [(head, 72)])
        counters = settled(traffic, "broken", 1)
    assert counters["frames"] == 0


def collected(backend, traffic: Traffic, count: int, queue: int = 0) -> list[bytes]:
    deadline = time.monotonic() + 10
    frames: list[bytes] = []
    while len(frames) < count and time.monotonic() < deadline:
        frames += [one[12:] for one in backend.collect(queue)]
        time.sleep(0.001)
    return frames


def test_table_is_sent_round_and_round_up_to_the_limit(backend, make_guest):
    guest = make_guest(size=16)
    with Traffic(guest, transmit=TABLE, limit=50) as traffic:
        assert collected(backend, traffic, 50) == (TABLE * 3)[:50]
        counters = settled(traffic, "returned", 50)
    assert some(counters, "sent", "sent_bytes") == (50, sum(map(len, (TABLE * 3)[:50])))
    assert backend.available(1) == 0


def test_window_bounds_what_is_in_flight(backend, make_guest):
    with Traffic(make_guest(), transmit=TABLE, window=3) as traffic:
        settled(traffic, "sent", 3)
        settled(traffic, "sleeps", 2)
        assert traffic.counters()["sent"] == 3
        assert collected(backend, traffic, 3)[:3] == TABLE[:3]


def test_full_virtqueue_of_long_chains_waits_for_a_call(backend, make_guest):
    guest = make_guest(size=16, transmit_shape=Shape(2048, 4))
    with Traffic(guest, transmit=TABLE, spins=2) as traffic:
        settled(traffic, "sent", 4)
        settled(traffic, "sleeps", 2)
        before = traffic.counters()["calls"]
        assert collected(backend, traffic, 8)[:8] == TABLE[:8]
        settled(traffic, "calls", before + 1)


def test_held_sender_sends_nothing_until_released(backend, make_guest):
    with Traffic(make_guest(), transmit=TABLE, limit=4, hold=True) as traffic:
        settled(traffic, "sleeps", 2)
        assert traffic.counters()["sent"] == 0
        traffic.hold(on=False)
        assert collected(backend, traffic, 4) == TABLE[:4]


def test_rate_spreads_frames_over_time(backend, make_guest):
    with Traffic(make_guest(), transmit=TABLE, rate=100) as traffic:
        settled(traffic, "sent", 5)
        counters = traffic.stop()
    assert counters["sent"] <= counters["elapsed_ns"] / 1e9 * 100 + 1


def test_each_pair_sends_its_own_frames(backend, make_guest):
    guest = make_guest(queues=2)
    with Traffic(guest, transmit={0: TABLE[:5], 1: TABLE[5:8]}, limit=100, window=20) as traffic:
        first, second = collected(backend, traffic, 20), collected(backend, traffic, 20, 1)
    assert (first[:20], second[:20]) == (TABLE[:5] * 4, (TABLE[5:8] * 7)[:20])


@pytest.mark.parametrize("poll", [False, True])
def test_idle_guest_sleeps_or_yields(backend, make_guest, poll):
    with Traffic(make_guest(), poll=poll) as traffic:
        counters = settled(traffic, "rounds", 200)
        assert (counters["sleeps"] == 0) == poll
        backend.deliver(TABLE[0])
        settled(traffic, "frames", 1)


def test_call_ends_the_sleep_and_is_counted(backend, make_guest):
    guest = make_guest(mergeable=False)
    guest.counters  # noqa: B018 - drains the calls so far
    with Traffic(guest, TABLE) as traffic:
        for number in range(10):
            settled(traffic, "sleeps", traffic.counters()["sleeps"] + 1)
            backend.deliver(TABLE[number])
            settled(traffic, "frames", number + 1)
        assert traffic.counters()["calls"] >= 1
    assert guest.mac == MAC
