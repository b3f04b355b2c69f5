# SPDX-License-Identifier: Apache-2.0
"""What frames cost where vmq runs: the file that `vmq bench --placement` writes, and a running engine believes, or does not.

    /var/lib/vmq/placement.json          of root
    $XDG_STATE_HOME/vmq/placement.json   of anybody else; another with placement_figures of [engine]

Figures of another machine or kernel, of another version of this form, or that can be of no machine, are not believed: then those of
the machine that vmq was measured on decide, and `why` says so. A file that is written while the engine runs is read within LOOK_SECONDS.
"""

from __future__ import annotations

import math
import os
import platform
import stat
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from vmq.direct.costs import ROUNDS_LEAST, Band, Cost, band
from vmq.errors import HostError
from vmq.kept import kept
from vmq.topology import model

VERSION = 1
NAME = "placement.json"
MEASURE = "Run vmq bench --placement as root, while nothing else runs"
SHORT, LONG = 1024, 1280  # bytes; docs/direct.md, When it is worth it
BUILT_IN = Band(SHORT, LONG, "by figures of another machine")
NOT_HERE = BUILT_IN._replace(whose=f"{BUILT_IN.whose} (vmq bench --placement measures here)")
BYTES_MOST = 1 << 20  # of a file
LOOK_SECONDS = 2.0
LENGTH_LEAST, LENGTH_MOST = 60, 65535
NS_MOST = 1e6  # a frame


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    version: int
    kernel: str
    cpu: str
    at: float  # seconds since 1970
    costs: tuple[Cost, ...]

    @classmethod
    def of(cls, costs: tuple[Cost, ...]) -> Figures:
        """Figures that were taken here and now."""
        return cls(VERSION, platform.release(), model(), time.time(), costs)

    def text(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self)).decode() + "\n"

    def band(self) -> Band:
        return band(self.costs, f"measured here on {time.strftime('%Y-%m-%d', time.localtime(self.at))}")


def believed(path: Path) -> Figures:
    """The figures of a file; HostError with the reason if they are not to be believed here."""
    try:
        read = msgspec.json.decode(_content(path), type=dict[str, Any])
        if read.get("version") != VERSION:
            raise HostError(str(path), f"is of version {read.get('version')!s:.20}, not {VERSION}", MEASURE)
        found = msgspec.convert(read, Figures)
    except FileNotFoundError:
        raise HostError(str(path), "nothing was measured here yet", MEASURE) from None
    except OSError as error:
        raise HostError(str(path), f"cannot be read: {error.strerror or error}", MEASURE) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as problem:
        raise HostError(str(path), f"has no figures of frames: {problem}", MEASURE) from None
    if wrong := doubts(found):
        raise HostError(str(path), wrong, MEASURE)
    return found


def _content(path: Path) -> bytes:
    """Of a file, and of nothing that one could wait for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is no file")
        content = os.read(descriptor, BYTES_MOST + 1)
    finally:
        os.close(descriptor)
    if len(content) > BYTES_MOST:
        raise OSError(0, f"it has more than {BYTES_MOST} bytes")
    return content


def doubts(found: Figures) -> str:
    """Why figures are not those of this machine, or of none; empty if nothing is to be said against them."""
    for what, there, here in (
        ("processor", found.cpu, model()),
        ("kernel", found.kernel, platform.release()),
    ):
        if there != here:
            return f"was measured on another {what}: {there:.80}, here {here}"
    try:
        time.localtime(found.at)
    except (ValueError, OverflowError, OSError):
        return f"was measured at no time: {found.at}"
    lengths = [cost.length for cost in found.costs]
    rising = all(one < other for one, other in pairwise(lengths))
    if len(lengths) < 2 or not rising or lengths[0] < LENGTH_LEAST or lengths[-1] > LENGTH_MOST:
        return f"has no two lengths, ascending from {LENGTH_LEAST} to {LENGTH_MOST} bytes"
    return next((wrong for cost in found.costs if (wrong := implausible(cost))), "")


def implausible(cost: Cost) -> str:
    """Why figures of one length can be of no machine."""
    parts = [part for spent in (cost.switched, cost.direct) for part in (spent.kernel, spent.engine)]
    if {len(part) for part in parts} != {len(parts[0])} or len(parts[0]) < ROUNDS_LEAST:
        return f"has not the same {ROUNDS_LEAST} rounds or more of all figures for {cost.length} bytes"
    if any(not math.isfinite(value) or abs(value) > NS_MOST for part in parts for value in part):
        return f"has figures that no frame of {cost.length} bytes takes"
    for name, spent in (("switched", cost.switched), ("direct", cost.direct)):
        if statistics.median(spent.total()) <= 0:
            return f"says that a {name} frame of {cost.length} bytes takes no time"
    return ""


class Known:
    """What an engine goes by: `band`, and of which file, or `why` of none."""

    def __init__(self) -> None:
        self.band, self.path, self.why = NOT_HERE, Path(), ""
        self._next = 0.0
        self._seen: tuple[Path, int, int] | None = None

    def look(self, now: float, asked: str | None) -> None:
        """`asked`: what the configuration names; looked at now and then, and read when it is another."""
        path = Path(asked) if asked else kept(NAME)
        if now < self._next and path == self.path:
            return
        self._next, self.path = now + LOOK_SECONDS, path
        seen = (self.path, *_identity(self.path))
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.band, self.why = believed(self.path).band(), ""
        except HostError as error:
            self.band, self.why = NOT_HERE, str(error)


def _identity(path: Path) -> tuple[int, int]:
    """What another content changes."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
