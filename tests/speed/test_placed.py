# SPDX-License-Identifier: Apache-2.0
"""A stand of both placements: frames arrive whole by the way that was asked for, and the kernel's part of it needs no engine."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from vmq.cli.client import ask
from vmq.errors import HostError, VmqError
from vmq.speed import placed
from vmq.speed.placed import BURST, PLACEMENTS, SHORTER, SOURCE, Stand, Took
from vmq.speed.stand import RING, mac
from vmq.speed.wire import a_frame


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    if os.geteuid():
        pytest.skip("root: needs root")
    with Stand(ask) as one:
        yield one


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "BURSTS", 2)


pytestmark = [pytest.mark.root, pytest.mark.compiled]


def test_a_burst_finds_buffers() -> None:
    assert SHORTER < BURST < RING


def test_a_round_has_the_cost_of_both_and_every_frame_is_counted_on_its_way(stand: Stand) -> None:
    before = dict(stand.sent)
    found = stand.round(512)
    assert set(found) == set(PLACEMENTS)
    assert all(isinstance(one, Took) for one in found.values())
    most = {
        name: stand.sent[name] - before[name] for name in PLACEMENTS
    }  # more where some were lost, and sent again
    assert all(count >= 2 * (BURST + SHORTER) + SHORTER for count in most.values())
    stand.check()


def landed(stand: Stand, count: int, mark: bytes) -> tuple[int, int]:
    """Of so many frames: how many are in guest memory while the engine is stopped, and how many arrive."""
    served, guest = stand.served, stand.served.guests["direct"]
    data = (a_frame(mac(PLACEMENTS.index("direct")), SOURCE, 14) + mark).ljust(256, b"!")
    with served.stopped():
        before = served.worked()
        stand.wire.call(partial(stand.wire.send, data, count))
        room = guest.memory.regions[0]
        found = guest.memory.read(room.guest, room.size).count(mark)
        assert served.worked() == before
    arrived = stand._received("direct", data, count)
    stand.wire.call(partial(stand.wire.send, data, 1))  # the engine posts what the guest has given back
    stand._received("direct", data, 1)
    return found, arrived


def test_what_the_kernel_places_is_in_guest_memory_while_the_engine_is_stopped(stand: Stand) -> None:
    """Also after its processor has polled the pair: nobody but the sender works for it then.

    Who shares the sender's processor may keep the kernel off it for longer than is waited for: then once more.
    """
    for number, count in enumerate((SHORTER, BURST) * 10):
        found, arrived = landed(stand, count, b"burst %d " % number)
        if number % 2 and found == arrived == count:
            break
    assert (found, arrived) == (BURST, BURST)


def test_frames_that_another_way_took_are_no_figures(stand: Stand) -> None:
    for counts, more in ((stand.arrived, 10**6), (stand.sent, -(10**6))):
        counts["direct"] += more
        with pytest.raises(VmqError, match="took these ways"):
            stand.check()
        counts["direct"] -= more


def test_frames_that_are_lost_are_no_figures(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "ARRIVE_SECONDS", 0.2)
    real = stand.wire.send
    monkeypatch.setattr(stand.wire, "send", lambda data, count: real(data, max(count - 1, 1)))
    with pytest.raises(VmqError, match=f"switched: some of {SHORTER} frames are lost, {placed.TRIES} times"):
        stand._burst("switched", 64, SHORTER)


def test_a_burst_of_which_frames_are_lost_is_made_again(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, counts = stand.wire.send, iter((SHORTER - 1,))

    def send(data: bytes, count: int) -> int:
        return real(data, next(counts, count))

    with monkeypatch.context() as patched:
        patched.setattr(stand.wire, "send", send)
        assert min(stand._burst("direct", 64, SHORTER)) > 0
    stand.check()


def test_a_frame_that_is_another_is_no_figure(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stand.wire.send
    with monkeypatch.context() as patched:
        patched.setattr(stand.wire, "send", lambda data, count: real(data[:-1] + b"!", count))
        with pytest.raises(VmqError, match=f"direct: {SHORTER} of {SHORTER} frames did not arrive whole"):
            stand._burst("direct", 64, SHORTER)
    stand.check()


def test_why_a_vm_is_not_placed_is_said(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "PATIENCE", 0.0)
    with pytest.raises(VmqError, match="placement is switched, not direct"):
        stand.served.until_placed("switched", "direct")


def test_an_engine_that_ends_is_said_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed.Served, "_text", lambda _: "[engine]\nzzz = 1\n")
    with pytest.raises(VmqError, match=r"does not serve: .*zzz"), Stand(ask):
        pass


def test_an_engine_that_is_stopped_can_be_ended() -> None:
    with Stand(ask) as one:
        process = one.served.process
        process.send_signal(signal.SIGSTOP)
    assert process.returncode == 0


def test_what_the_host_refuses_is_said_before_anything_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(placed, "Apart", refuse)
    with (
        pytest.raises(HostError, match=r"AF_XDP is refused: Operation not permitted.*root"),
        Stand(ask, lambda: pytest.fail("it was prepared")),
    ):
        pass
    monkeypatch.setattr(placed, "counts_apart", lambda: True)
    with pytest.raises(HostError, match="tsc=noirqtime"), Stand(ask):
        pass
