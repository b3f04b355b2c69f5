# SPDX-License-Identifier: Apache-2.0
"""Whether direct placement pays for a VM (`placement = "auto"`), by the mean length of the frames that its guest gets.

    mean of a look    band.short or less: it does not     band.long or more: it does     between, or few frames: as before

What counts is the machine's whole time for a frame. Direct placement has the kernel handle a frame once more, which costs about the
same for all lengths, and saves the engine a copy, which does not. From which length on that is less is measured where vmq runs
(figures.py), if anybody has; else by the medians in docs/measurements.md, Who places, it is at some 900 to 1100 bytes on the machine they were taken on.

Each time that it has ceased to pay, twice as many looks in a row have to say that it does, up to LOOKS_MOST: a VM whose frames are now
long, now short is switched most of the time.
"""

from __future__ import annotations

from vmq.direct.costs import Band
from vmq.direct.figures import BUILT_IN

LOOK_SECONDS, FEWEST = 2.0, 2000  # between two looks; frames of one that says something
LOOKS_MOST = 64


class Lengths:
    """Of one VM; it does not pay until frames have shown that it does."""

    def __init__(self) -> None:
        self.pays = False
        self.band = BUILT_IN
        self.mean: float | None = None  # of the last look with enough frames
        self._next = 0.0
        self._before: tuple[int, int] | None = None
        self._long, self._wanted = 0, 1  # looks in a row that said long, and how many have to

    def look(self, now: float, frames: int, volume: int, band: Band = BUILT_IN) -> None:
        """`frames`, `volume`: what the guest has got so far, in frames and bytes; asked often, it looks now and then."""
        self.band = band
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        before, self._before = self._before or (frames, volume), (frames, volume)
        count = frames - before[0]
        if count < FEWEST:
            return
        self.mean = (volume - before[1]) / count
        self._long = self._long + 1 if self.mean >= band.long else 0
        if self.pays and self.mean <= band.short:
            self.pays, self._wanted = False, min(2 * self._wanted, LOOKS_MOST)
        elif self._long >= self._wanted:
            self.pays = True

    def why(self) -> str:
        """Why it does not pay, or, while it does, by what."""
        if self.mean is None:
            return f"it has few frames: whether direct placement pays is not known; {self.band.words()}"
        if self._long and not self.pays:
            return (
                f"its frames were short before: long ones are to last for {self._wanted * LOOK_SECONDS:.0f} s"
            )
        return f"its frames are {self.mean:.0f} bytes long in the mean: {self.band.words()}"
