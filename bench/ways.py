# SPDX-License-Identifier: Apache-2.0
"""Frames that guests send, to each other and out by the uplink; beside OVS-DPDK.

    vm-to-vm      guest 0 ─► system ─► guest 1                      64 B, counted at the receiver
    from-guests   guests 0 to 3 ─► system ─► uplink, a sink         counted where they leave
    ports         capture ─► system ─► 1, 4, 16, 32 guests          no two frames of a burst to the same one, if it can be

All guests of a run are one loop on one processor (crowd.py), the system has the other. A system is proved first: what
arrives of what guests send is compared with it, byte for byte. After each run the senders stop, and what they have sent
must have arrived or have been dropped by a name: otherwise there is no figure. Of `ports` every frame's address is
checked where it arrives; its frames are those of the delivery rows (delivery.py), which prove them.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from bench.crowd import Crowd
from bench.delivery import (
    MEASURED_SECONDS,
    WARM_SECONDS,
    RefusedError,
    check_books,
    first_frames,
    in_turn,
)
from bench.guests import rate
from bench.quiet import say
from bench.stats import Figure, Figures, Measure
from bench.systems import (
    CLASSIFYING,
    FLOWS,
    SOURCE,
    SYSTEMS,
    Load,
    Served,
    frames_in_turns,
    mac,
    sizes_of,
    udp_frame,
)
from tests.dpdk.frames import read_capture

SENDERS = 4  # that send to the uplink
WINDOW = 64  # frames in flight while frames are compared: none finds a ring full
PROVED_BYTES = 1 << 19  # of each sender that are compared: what keeps them takes 4 MiB at once
PROVE_SECONDS, CALM_SECONDS = 20.0, 1.0
PORTS = (1, 4, 16, 32)
Once = Callable[[str, int], float]  # a system, bytes of a frame: million frames a second


@lru_cache(maxsize=2)
def frames_from(senders: int, to: str, size: int) -> dict[int, tuple[bytes, ...]]:
    """What each guest sends: together as many frames and flows as are replayed elsewhere, each flow of one sender."""
    numbers = range(len(sizes_of(size)))
    return {
        sender: tuple(
            udp_frame(to, mac(sender), number % FLOWS, number, size) for number in numbers[sender::senders]
        )
        for sender in range(senders)
    }


@contextmanager
def serving(system: str, load: Load) -> Iterator[Served]:
    """A system in a folder that goes with it."""
    with (
        tempfile.TemporaryDirectory(prefix="vmq-bench-") as name,
        SYSTEMS[system](Path(name), load) as served,
    ):
        yield served


def begin(crowd: Crowd) -> None:
    """Let them send. OVS rearranges its ports after guests have come, and drops what comes meanwhile."""
    time.sleep(CALM_SECONDS)
    crowd.hold(on=False)


# --- what was sent has arrived --------------------------------------------------------------------------------


def missing(sent: int, arrived: int, dropped: int) -> str:
    """What became of frames without a name, in words."""
    return (
        ""
        if sent == arrived + dropped
        else f"{sent} frames sent, {arrived} arrived, {dropped} dropped by name"
    )


def check_all(served: Served, crowd: Crowd, what: str) -> int:
    """Stop the senders, and refuse if a frame was lost without a name; frames that were dropped by one."""
    still = crowd.settle()
    counts = served.counts()
    arrived = crowd.count("frames") + counts.to_wire
    wrong = missing(crowd.count("sent"), arrived, counts.dropped)
    for name in ("stray", "broken", "empty", "bad"):
        if found := crowd.count(name):
            wrong = wrong or f"{found} received frames are {name}"
    if wrong or not still:
        raise RefusedError(f"{what}: {wrong or 'frames never came back'}\n{served.complaints()}")
    return counts.dropped


def wait_sent(served: Served, crowd: Crowd, count: int) -> None:
    """Until so many frames are sent."""
    deadline = time.monotonic() + PROVE_SECONDS
    while (sent := crowd.count("sent")) < count:
        if time.monotonic() > deadline:
            raise RefusedError(f"{sent} of {count} frames were taken of the guests:\n{served.complaints()}")
        time.sleep(0.01)


def expecting(frames: Sequence[bytes]) -> dict[str, Any]:
    """A guest compares what it gets with these, in this order."""
    return {"expected": frames}


def prove_pair(system: str, size: int) -> int:
    """Send every frame once from a guest to another, which compares it with what must come next; frames compared."""
    frames = frames_from(1, mac(1), size)
    count = len(frames[0])
    options: dict[int, dict[str, Any]] = {
        0: {"limit": count, "window": WINDOW},
        1: expecting(frames[0]),
    }
    with serving(system, Load(2)) as served, Crowd(served, frames, options=options) as crowd:
        begin(crowd)
        wait_sent(served, crowd, count)
        check_all(served, crowd, system)
        verified = crowd.count("verified")
    if verified != count:
        raise RefusedError(f"{system}: {verified} of {count} frames are as they were sent, and in order")
    return verified


def prove_uplink(system: str, size: int) -> int:
    """Send some frames of each guest to an uplink that keeps them, and compare; frames compared."""
    count = min(PROVED_BYTES // size, 2048)
    sent = {one: frames[:count] for one, frames in frames_from(SENDERS, SOURCE, size).items()}
    options = {one: {"limit": count, "window": WINDOW} for one in sent}
    with tempfile.TemporaryDirectory(prefix="vmq-bench-") as name:
        kept = Path(name) / "out.pcap"
        with (
            serving(system, Load(SENDERS, kept=kept)) as served,
            Crowd(served, sent, options=options) as crowd,
        ):
            begin(crowd)
            wait_sent(served, crowd, SENDERS * count)
            check_all(served, crowd, system)
        got = Counter(read_capture(kept))
    wanted = Counter(frame for frames in sent.values() for frame in frames)
    if got != wanted:
        raise RefusedError(f"{system}: {(got - wanted).total()} frames left that were not sent, "
                           f"{(wanted - got).total()} did not leave")  # fmt: skip
    return got.total()


# --- a rate ---------------------------------------------------------------------------------------------------


def pair_once(system: str, size: int) -> float:
    """Million frames a second that arrive at the second guest."""
    with serving(system, Load(2)) as served, Crowd(served, frames_from(1, mac(1), size)) as crowd:
        begin(crowd)
        time.sleep(WARM_SECONDS)
        before = crowd.meter()
        time.sleep(MEASURED_SECONDS)
        after = crowd.meter()
        check_all(served, crowd, system)
    return positive(rate(before, after), system)


def uplink_once(system: str, size: int) -> float:
    """Million frames a second that leave by the uplink, which says so itself."""
    with serving(system, Load(SENDERS)) as served, Crowd(served, frames_from(SENDERS, SOURCE, size)) as crowd:
        begin(crowd)
        time.sleep(WARM_SECONDS)
        before = left(served)
        time.sleep(MEASURED_SECONDS)
        after = left(served)
        check_all(served, crowd, system)
        shares = [member.counters()["sent"] for member in crowd.members]
    if not all(shares):
        raise RefusedError(f"{system} took nothing of a guest: {shares}")
    return positive(rate(before, after), system)


def left(served: Served) -> list[tuple[int, float]]:
    """Frames that have left, and when that was so: in the middle of the question."""
    began = time.monotonic()
    count = served.counts().to_wire
    return [(count, (began + time.monotonic()) / 2)]


def positive(frames: float, system: str) -> float:
    """Million frames a second, of which there are some."""
    if frames <= 0:
        raise RefusedError(f"{system} delivered nothing")
    return frames / 1e6


def both(once: Once, prove: Callable[[str, int], int], what: str, size: int, runs: int) -> Figures:
    """Figures of both systems, each proved first."""
    for system in CLASSIFYING:
        say(f"{what}: {prove(system, size)} frames through {system} compared, all intact")
    return in_turn({system: partial(once, system, size) for system in CLASSIFYING}, what, runs, say)


# --- many ports -----------------------------------------------------------------------------------------------


def spread_once(system: str, guests: int) -> float:
    """Million frames a second that arrive at so many guests in turn."""
    load = Load(guests, frames_in_turns(guests, 64))
    with serving(system, load) as served, Crowd(served) as crowd:
        first_frames(served, crowd.meter)
        time.sleep(WARM_SECONDS)
        before = crowd.meter()
        time.sleep(MEASURED_SECONDS)
        after = crowd.meter()
        if not all(then > first for (first, _), (then, _) in zip(before, after, strict=True)):
            raise RefusedError(f"{system} stopped delivering to a guest:\n{served.complaints()}")
        if stray := crowd.count("stray"):
            raise RefusedError(f"{system}: {stray} frames at a guest whose they are not")
        if served.engine is not None:
            check_books(served.engine, crowd.meter)
    return positive(rate(before, after), system)


def spread(guests: int, runs: int) -> Figures:
    """Both systems, and so many guests."""
    measure = {system: partial(spread_once, system, guests) for system in CLASSIFYING}
    return in_turn(measure, f"ports-{guests}", runs, say)


def ours(once: Callable[[], float], runs: int) -> Figures:
    """Our own engine alone."""
    return {"vmq": Figure.of([once() for _ in range(runs)])}


PEERS: dict[str, Measure] = {
    "vm-to-vm": partial(both, pair_once, prove_pair, "vm-to-vm", 64),
    **{
        f"from-guests-{size}": partial(both, uplink_once, prove_uplink, f"from-guests-{size}", size)
        for size in (64, 1514)
    },
    **{f"ports-{guests}": partial(spread, guests) for guests in PORTS},
}
QUICK: dict[str, Measure] = {
    "vm-to-vm": partial(ours, partial(pair_once, "vmq", 64)),
    "from-guests-64": partial(ours, partial(uplink_once, "vmq", 64)),
    "ports-32": partial(ours, partial(spread_once, "vmq", 32)),
}
