# SPDX-License-Identifier: Apache-2.0
"""SIGBUS: guest memory whose file was truncated. One VM port stops, the process lives.

The kernel sends SIGBUS to the thread that touches a page beyond the end of the file. The handler finds the mapping
in the table that control keeps, maps zero pages over it, marks the VM port and returns: the access is repeated and
reads zeros, which no longer matter. A fault anywhere else is ours: the default action is restored and ends us.
"""

from __future__ import annotations

import numpy as np

from vmq.abi.linux import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    siginfo_fault,
)
from vmq.dataplane.reasons import MEMORY_GONE
from vmq.dataplane.state import ANCHOR, ANCHOR_SLOTS, MAX_MAPPINGS, MAX_VPORTS, engine, mapping, port_state
from vmq.jit import at, c_write, int64, kernel, poke, signal_handler, system_call

c_mmap = system_call("mmap", 6, wide=True)
c_signal = system_call("signal", 2, wide=True)

SIGINFO = siginfo_fault.itemsize
DEFAULT_ACTION = 0


@kernel
def contain(address: int, one: int) -> bool:
    """Replace the mapping around `address` by zeros and stop its VM port; False if it is not guest memory."""
    anchor = at(ANCHOR, ANCHOR_SLOTS, np.int64)
    for slot in range(ANCHOR_SLOTS):
        if anchor[slot] == 0:
            continue
        shared = at(anchor[slot], 1, engine)[0]
        table = at(shared["mappings"], MAX_MAPPINGS, mapping)
        for index in range(MAX_MAPPINGS):
            row = table[index]
            if row["host"] <= address < row["host"] + row["length"]:
                flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
                if c_mmap(row["host"], row["length"], PROT_READ | PROT_WRITE, flags, -1, 0) < 0:
                    return False
                state = at(shared["port_state"], MAX_VPORTS, port_state)[row["vport"]]
                if state["fault"] == 0:
                    state["fault"] = MEMORY_GONE
                poke(one, np.uint64, np.uint64(1))
                c_write(shared["control_fd"], one, 8)
                return True
    return False


@kernel
def handle(number: int, information: int, _context: int) -> None:
    """The signal handler's body; `information` is a siginfo_t. Its last bytes serve as scratch."""
    address = int64(at(information, 1, siginfo_fault)[0]["address"])
    if not contain(address, information + SIGINFO):
        c_signal(number, DEFAULT_ACTION)


on_sigbus = signal_handler(handle)
