# SPDX-License-Identifier: Apache-2.0
"""Frames a second into guests: the same frames, guests and processors for each system, in turn (A B A B …).

A system is proved before it is measured: what its guests keep is compared with the capture, byte for byte. A run that
delivers nothing has no figure, and RefusedError says why. Nor has one of our own engine whose books do not close. They
cannot while they move, so the guests' frames are turned away first; then, to the frame,

    uplink          taken = forwarded + drops            copies = offered to all receive queues + handover_* drops
    receive queue   offered = delivered + to_guest_* drops
    guest           its own count = delivered
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mode
from typing import Any

from bench import quiet
from bench.guests import FRONT_ENDS, Meter, keeping, rate
from bench.stats import Figure
from bench.systems import CLASSIFYING, SYSTEMS, Load, Served, Size, compared, frames_for, mac, named
from tests.dpdk.frames import mac_bytes
from tests.vm.lab.engine import EngineProcess

WARM_SECONDS, MEASURED_SECONDS, KEPT_SECONDS = 1.0, 1.6, 0.2
DELIVER_SECONDS, DRAIN_SECONDS, LOOK_SECONDS = 20.0, 10.0, 0.05
LOOKS = 32
SOURCE_NAME, NOBODYS_VLAN = "source", 4094
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
                check_books(served.engine, meter)
    return rate(before, after) / 1e6


# --- the books ------------------------------------------------------------------------------------------------


def check_books(engine: EngineProcess, meter: Meter) -> None:
    """Let guests get nothing more, wait until what was on its way is there, and refuse if a frame has no name."""
    hush(engine)
    deadline = time.monotonic() + DRAIN_SECONDS
    while problem := unbalanced(engine.show("queues"), engine.show("uplinks")[SOURCE_NAME], counts(meter)):
        if time.monotonic() > deadline:
            raise RefusedError(problem)
        time.sleep(LOOK_SECONDS)
    check_uplink(lambda: engine.show("uplinks")[SOURCE_NAME])


def hush(engine: EngineProcess) -> None:
    """Turn every guest's frames away: from here on they belong to a VLAN of which the source has none."""
    line = f'uplink = "{SOURCE_NAME}"\n'
    engine.configure(engine.file.read_text().replace(line, f"{line}vlan = {NOBODYS_VLAN}\n"))
    engine.reload()
    deadline = time.monotonic() + DRAIN_SECONDS
    while any(row["vlan"] != NOBODYS_VLAN for row in engine.show("vms").values()):
        if time.monotonic() > deadline:
            raise RefusedError(f"the engine did not turn frames away:\n{engine.log}")
        time.sleep(LOOK_SECONDS)


def counts(meter: Meter) -> list[int]:
    """Frames that have arrived at each guest, by its own count."""
    return [count for count, _ in meter()]


def unbalanced(queues: Books, uplink: Mapping[str, Any], arrived: Sequence[int]) -> str:
    """What does not agree while no guest gets anything, in words: each frame is counted at both ends of each way.

    From the uplink to the receive queues, of those to the guests, and at the guests.
    """
    offered = sum(row["offered_to_guest"] + on_the_way(row) for row in queues.values())
    if (copies := uplink["copies"]) != offered + on_the_way(uplink) + uplink["waiting"]:
        return f"{copies} frames steered to guests, {offered} offered to them or dropped by name on the way"
    for name, row in queues.items():
        if row["offered_to_guest"] != settled(row):
            return f"{name}: {row['offered_to_guest']} frames offered, {settled(row)} delivered or dropped by name"
    for number, has in enumerate(arrived):
        due = sum(row["frames_to_guest"] for row in queues.values() if row["vm"] == f"v{number}")
        if has != due:
            return f"v{number}: {due} frames delivered by the engine's count, {has} arrived by the guest's"
    return ""


def check_uplink(look: Callable[[], Mapping[str, Any]]) -> None:
    """Refuse if an uplink, which goes on, has taken a frame without a name.

    Up to a burst of frames is taken and not judged yet, now more, now less, and between two bursts none: so the difference
    that is found most often is the books' own. A processor that stood still shows the same again, which counts once.
    """
    differences: dict[int, int] = {}
    deadline = time.monotonic() + DRAIN_SECONDS
    while len(differences) < LOOKS or mode(differences.values()):
        row = look()
        differences[row["frames_from_wire"]] = row["frames_from_wire"] - judged(row)
        if time.monotonic() > deadline:
            usual = mode(differences.values())
            raise RefusedError(f"{usual} of {row['frames_from_wire']} frames from the wire have no name")


def settled(row: Mapping[str, Any]) -> int:
    """Frames of a receive queue that arrived or have a named drop."""
    return int(row["frames_to_guest"]) + dropped(row, "to_guest_")


def judged(row: Mapping[str, Any]) -> int:
    """Frames of an uplink that were forwarded, or dropped before that."""
    return int(row["forwarded"]) + dropped(row) - dropped(row, "to_wire_") - on_the_way(row)


def on_the_way(row: Mapping[str, Any]) -> int:
    """Frames that were dropped between the processors of a source and of a receive queue."""
    return dropped(row, "handover_")


def dropped(row: Mapping[str, Any], kind: str = "") -> int:
    """Frames with a named drop of this kind."""
    return sum(int(count) for drop, count in row["drops"].items() if drop.startswith(kind))


# --- what arrives ---------------------------------------------------------------------------------------------


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
