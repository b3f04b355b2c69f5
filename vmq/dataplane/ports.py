# SPDX-License-Identifier: Apache-2.0
"""What both directions do to a VM port: call its driver, report an event to control, stop it on a fault.

A call never blocks: the descriptor is an eventfd in non-blocking mode (checked and set when it came), a full one
is a lost call that the driver has pending anyway. Should the other end turn blocking on again behind our back, the
watchdog of the control plane sees `calling` stand still and drains the eventfd.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.dataplane.state import EVENT_FAULT, EVENTS, MAX_VPORTS, engine, event, port_state
from vmq.jit import at, c_write, kernel, poke, store_release


@kernel
def signal(w: Any, descriptor: int) -> int:
    """Add one to an eventfd; bytes written, or minus errno."""
    poke(w["clock"], np.uint64, np.uint64(1))
    return c_write(descriptor, w["clock"], 8)


@kernel
def signal_front_end(w: Any, descriptor: int) -> int:
    """The same to an eventfd that a front-end holds too: the watchdog sees how long it takes."""
    store_release(w, "calling", descriptor + 1)
    written = signal(w, descriptor)
    store_release(w, "calling", 0)
    return written


@kernel
def call(w: Any, vq: Any, books: Any) -> None:
    """Interrupt the driver of a virtqueue."""
    if vq["call_fd"] >= 0 and signal_front_end(w, vq["call_fd"]) < 0:
        books["call_lost"] += 1


@kernel
def report(w: Any, kind: int, port: int, value: int) -> None:
    """Tell control; a full ring loses the event, never the frame. Control reads up to `event_head` (acquire)."""
    row = at(w["events"], EVENTS, event)[w["event_head"] % EVENTS]
    row["kind"] = kind
    row["vport"] = port
    row["value"] = value
    # us: row, then head | control: head, then row.
    store_release(w, "event_head", w["event_head"] + 1)
    signal(w, at(w["engine"], 1, engine)[0]["control_fd"])


@kernel
def fault(w: Any, port: int, vq: Any, code: int) -> None:
    """Stop a VM port: nothing is written to its rings, or believed of them, until its driver starts anew."""
    shared = at(w["engine"], 1, engine)[0]
    state = at(shared["port_state"], MAX_VPORTS, port_state)[port]
    if state["fault"] == 0:
        state["fault"] = code
        if vq["error_fd"] >= 0:
            signal_front_end(w, vq["error_fd"])
        report(w, EVENT_FAULT, port, code)
