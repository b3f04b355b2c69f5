# SPDX-License-Identifier: Apache-2.0
"""Whether direct placement pays for a VM (`placement = "auto"`), by the mean length of the frames that its guest gets.

    mean of a look    SHORT or less: it does not     LONG or more: it does     between, or few frames: as before

What counts is the machine's whole time for a frame. Direct placement has the kernel handle a frame once more, which costs about the
same for all lengths, and saves the engine a copy, which does not. By the medians in docs/measurements.md, Who places, that is 169 to
209 ns more of the kernel's, and 54 (64 B), 90 (512 B) and 287 ns (1514 B) less of the engine's: equal at some 900 to 1100
bytes on the machine they were taken on. Nothing is measured where vmq runs.

Each time that it has ceased to pay, twice as many looks in a row have to say that it does, up to LOOKS_MOST: a VM whose frames are now
long, now short is switched most of the time.
"""

from __future__ import annotations

SHORT, LONG = 1024, 1280  # bytes
LOOK_SECONDS, FEWEST = 2.0, 2000  # between two looks; frames of one that says something
LOOKS_MOST = 64


class Lengths:
    """Of one VM; it does not pay until frames have shown that it does."""

    def __init__(self) -> None:
        self.pays = False
        self.mean: float | None = None  # of the last look with enough frames
        self._next = 0.0
        self._before: tuple[int, int] | None = None
        self._long, self._wanted = 0, 1  # looks in a row that said long, and how many have to

    def look(self, now: float, frames: int, volume: int) -> None:
        """`frames`, `volume`: what the guest has got so far, in frames and bytes; asked often, it looks now and then."""
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        before, self._before = self._before or (frames, volume), (frames, volume)
        count = frames - before[0]
        if count < FEWEST:
            return
        self.mean = (volume - before[1]) / count
        self._long = self._long + 1 if self.mean >= LONG else 0
        if self.pays and self.mean <= SHORT:
            self.pays, self._wanted = False, min(2 * self._wanted, LOOKS_MOST)
        elif self._long >= self._wanted:
            self.pays = True

    def why(self) -> str:
        """Why it does not pay."""
        if self.mean is None:
            return "it has few frames: whether direct placement pays is not known"
        if self._long:
            return (
                f"its frames were short before: long ones are to last for {self._wanted * LOOK_SECONDS:.0f} s"
            )
        return f"its frames are {self.mean:.0f} bytes long in the mean: direct placement pays from {LONG} on"
