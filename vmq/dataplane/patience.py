# SPDX-License-Identifier: Apache-2.0
"""How long a processor looks for work before it sleeps: longer where a sleep was short, and nobody else wants it.

        looking ─── nothing for `patience` ───► asleep ─── woken after less than LONGEST ───► twice as patient, up to LONGEST
                                                       └── later, or by nobody ─────────────► SHORTEST again

To be woken takes some 100 µs, by far more than a frame takes. Who was woken soon after it fell asleep had better looked
on. What looks on keeps the processor busy, so one that is idle soon sleeps again; and one whose processor others
want, seen by that they took it away (getrusage, involuntary context switches), does not look on at their cost.
"""

from __future__ import annotations

from typing import Any

from vmq.abi.linux import RUSAGE_THREAD, rusage
from vmq.clock import now
from vmq.jit import at, int64, kernel, system_call

SHORTEST, LONGEST = 25_000, 200_000  # ns
ROUNDS = 16  # empty rounds between two looks at the clock

c_getrusage = system_call("getrusage", 2)


@kernel
def taken_away(w: Any) -> bool:
    """Whether others took the processor since this was asked last."""
    c_getrusage(RUSAGE_THREAD, w["usage"])
    count = int64(at(w["usage"], 1, rusage)[0]["involuntary"])
    before = int64(w["switches"])
    w["switches"] = count
    return count != before


@kernel
def learn(w: Any, slept: int, woken: bool) -> None:
    """How long to look next time, after a sleep of so many nanoseconds."""
    wanted = taken_away(w)
    if woken and slept < LONGEST and not wanted:
        w["patience"] = min(max(2 * int64(w["patience"]), SHORTEST), LONGEST)
    else:
        w["patience"] = SHORTEST


@kernel
def tired(w: Any, idle: int) -> bool:
    """Whether to sleep, after so many rounds without work."""
    if idle % ROUNDS:
        return False
    time = now(w)
    if idle == ROUNDS:
        w["idle_since"] = time
    return bool(time - int64(w["idle_since"]) >= w["patience"])


@kernel
def found(w: Any, idle: int) -> None:
    """Work, after so many rounds without: the time between is not counted as busy. 0: it does not look for any."""
    if idle >= ROUNDS:
        w["woke"] += now(w) - int64(w["idle_since"])
        w["idle_since"] = 0
