# SPDX-License-Identifier: Apache-2.0
"""Frames a second into guests: the same frames, guests and processors for each system, in turn (A B A B …).

A system is proved before it is measured: what its guests keep is compared with the capture, byte for byte. A run that
delivers nothing, or loses a frame without a name, has no figure: RefusedError says why.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench import quiet
from bench.guests import FRONT_ENDS, Meter, keeping, rate
from bench.stats import Figure
from bench.systems import CLASSIFYING, SYSTEMS, Load, Served, Size, compared, frames_for, mac, named
from tests.dpdk.frames import mac_bytes

WARM_SECONDS, MEASURED_SECONDS, KEPT_SECONDS = 1.0, 1.6, 0.2
DELIVER_SECONDS, BURST_SECONDS = 20.0, 1.0
Say = Callable[[str], None]
Books = Mapping[str, Mapping[str, Any]]


class RefusedError(Exception):
    """There is no figure, and why."""


def first_frames(served: Served, meter: Meter) -> None:
    """Wait until something arrives at every guest."""
    deadline = time.monotonic() + DELIVER_SECONDS
    while not all(count for count, _ in meter()):
        if time.monotonic() > deadline:
            raise RefusedError(f"nothing was delivered:\n{served.complaints()}")
        time.sleep(0.05)


def once(system: str, front_end: str, guests: int, size: Size) -> float:
    """One run: million frames a second that arrived."""
    load = Load(guests, frames_for(guests, size))
    with tempfile.TemporaryDirectory(prefix="vmq-bench-") as name:
        folder = Path(name)
        with (
            SYSTEMS[system](folder, load) as served,
            FRONT_ENDS[front_end](folder, served) as meter,
        ):
            first_frames(served, meter)
            time.sleep(WARM_SECONDS)
            before = meter()
            time.sleep(MEASURED_SECONDS)
            after = meter()
            if not all(then > first for (first, _), (then, _) in zip(before, after, strict=True)):
                raise RefusedError(f"{system} stopped delivering to a guest:\n{served.complaints()}")
            if served.engine is not None:
                check_books(partial(served.engine.show, "queues"))
    return rate(before, after) / 1e6


def check_books(look: Callable[[], Books]) -> None:
    """Refuse if a frame was lost without a name. A burst that is under way for longer than a look is waited for."""
    first, deadline = look(), time.monotonic() + BURST_SECONDS
    while problem := unnamed(first, look()):
        if time.monotonic() > deadline:
            raise RefusedError(problem)


def unnamed(first: Books, then: Books) -> str:
    """What is missing in the books of a running engine, in words: of two looks, one after the other.

    What was offered at the first has arrived or has a name at the second, and never has more arrived than was offered.
    """
    for name, row in first.items():
        if row["offered_to_guest"] > settled(then[name]) or settled(row) > then[name]["offered_to_guest"]:
            return f"{name}: {row['offered_to_guest']} frames offered, {settled(then[name])} delivered or dropped by name"
    return ""


def settled(row: Mapping[str, Any]) -> int:
    """Frames of a receive queue that arrived or have a named drop."""
    named: int = sum(count for drop, count in row["drops"].items() if drop.startswith("to_guest"))
    return int(row["frames_to_guest"]) + named


def prove(system: str, guests: int, size: Size) -> int:
    """Compare what the guests of a system get with its capture; frames compared."""
    load = Load(guests, frames_for(guests, size))
    allowed = frozenset(load.frames)
    compared_frames = 0
    with tempfile.TemporaryDirectory(prefix="vmq-bench-") as name:
        folder = Path(name)
        with SYSTEMS[system](folder, load) as served, keeping(folder, served) as (meter, kept):
            first_frames(served, meter)
            time.sleep(KEPT_SECONDS)
            for number, frames in enumerate(kept()):
                if wrong := strays(frames, allowed, mac_bytes(mac(number))):
                    raise RefusedError(f"{system}: guest {number} got {wrong}")
                compared_frames += len(frames)
    return compared_frames


def strays(frames: list[bytes], allowed: frozenset[bytes], address: bytes) -> str:
    """What of these frames no guest of this address should have, in words."""
    if not frames:
        return "nothing"
    for one in frames:
        if one[:6] != address:
            return f"a frame to {one[:6].hex(':')}"
        if one not in allowed:
            return f"a frame that was never sent: {one[:48].hex()}…"
    return ""


def delivery(front_end: str, guests: int, size: Size, runs: int, say: Say) -> dict[str, Figure]:
    """Figures of each system that can serve so many guests."""
    what = f"{named(size)} to {guests}"
    for system in compared(guests):
        if system in CLASSIFYING:
            say(f"{what}: {prove(system, guests, size)} frames of {system} compared, all intact")
    measure = {name: partial(once, name, front_end, guests, size) for name in compared(guests)}
    return in_turn(measure, f"{what} {front_end}", runs, say)


def in_turn(
    measure: Mapping[str, Callable[[], float]], what: str, runs: int, say: Say, unit: str = "Mpps"
) -> dict[str, Figure]:
    """Figures of several systems: one value each, again and again, when nothing else runs."""
    values: dict[str, list[float]] = {name: [] for name in measure}
    for run in range(runs):
        for system, several in values.items():
            others = quiet.wait()
            several.append(measure[system]())
            busy = f" (others took {others:.0%} of the machine)" if others > quiet.QUIET else ""
            say(f"{what}: {run + 1}/{runs}, {system} {several[-1]:.2f} {unit}{busy}")
    return {name: Figure.of(several) for name, several in values.items()}
