# SPDX-License-Identifier: Apache-2.0
"""Why a frame was dropped, and why a VM port was stopped: one table each yields the constant, the counter and the text.

A *drop* is of one frame, and everything else goes on. A *fault* stops one VM port, until its driver starts again.
"""

from __future__ import annotations

# --- drops: one table yields the constant, the counter and the text (docs/man) ---
DROPS: tuple[tuple[str, str], ...] = (
    ("to_guest_no_buffer", "the guest has posted no receive buffer"),
    (
        "to_guest_too_long",
        "the frame is longer than the MTU of the VM port or than the guest's receive buffers",
    ),
    ("to_guest_bad_buffer", "a receive buffer lies outside guest memory, or is not writable"),
    ("to_guest_not_running", "the guest's driver has not started this receive queue"),
    ("to_guest_pair", "the veth pair of a direct receive queue was full, or the frame was another VM's"),
    ("from_guest_bad_address", "a transmit buffer lies outside guest memory"),
    ("from_guest_direction", "a transmit chain has a buffer that the device would write"),
    ("from_guest_indirect", "an indirect table is empty, misaligned, nested or outside guest memory"),
    ("from_guest_short", "a transmit chain is shorter than a packet header and an Ethernet header"),
    ("from_guest_too_long", "a frame from the guest is longer than the MTU of its VM port"),
    ("from_guest_offload", "the packet header asks for an offload that was not negotiated"),
    ("from_guest_source", "the source address is zero or a group address"),
    ("from_guest_spoofed", "the source address is not one of the VM's filters (spoof_check)"),
    ("from_guest_vlan", "the frame carries a VLAN tag that this VM port does not accept"),
    ("from_guest_storm", "the guest sends more broadcast and multicast frames a second than its storm_limit"),
    ("from_guest_disabled", "the guest sent on a ring that its driver has disabled"),
    ("own_address", "the destination is the sender itself"),
    ("no_filter", "no receive filter names the destination, and there is no uplink to send it to"),
    (
        "default_queue",
        "no receive filter names the destination: the host's share (its own stack has it, or none)",
    ),
    ("drop_queue", "a receive filter of the drop queue matches"),
    ("link_local", "01:80:c2:00:00:0x never crosses a bridge (link_local)"),
    ("vlan_truncated", "the frame ends inside its VLAN tag"),
    ("runt", "the frame from the wire is shorter than an Ethernet header"),
    ("from_wire_too_long", "the frame from the wire is longer than its buffer or the MTU"),
    ("from_wire_offload", "checksum or segmentation metadata from the wire does not fit the frame"),
    (
        "from_wire_astray",
        "the frame stood in a VM's own queue of the TAP, and no receive filter of that VM names it",
    ),
    ("handover_full", "the ring to the processor of the destination, or to the default queue, is full"),
    ("handover_moved", "the receive queue was paused or freed while the frame was on its way"),
    ("to_wire_full", "the uplink takes no more frames now"),
    ("to_wire_error", "the uplink refused the frame"),
)
DROP_COUNT = 32  # columns of the counters; room for the names to come

(
    TO_GUEST_NO_BUFFER,
    TO_GUEST_TOO_LONG,
    TO_GUEST_BAD_BUFFER,
    TO_GUEST_NOT_RUNNING,
    TO_GUEST_PAIR,
    FROM_GUEST_BAD_ADDRESS,
    FROM_GUEST_DIRECTION,
    FROM_GUEST_INDIRECT,
    FROM_GUEST_SHORT,
    FROM_GUEST_TOO_LONG,
    FROM_GUEST_OFFLOAD,
    FROM_GUEST_SOURCE,
    FROM_GUEST_SPOOFED,
    FROM_GUEST_VLAN,
    FROM_GUEST_STORM,
    FROM_GUEST_DISABLED,
    OWN_ADDRESS,
    NO_FILTER,
    DEFAULT_QUEUE,
    DROP_QUEUE,
    LINK_LOCAL,
    VLAN_TRUNCATED,
    RUNT,
    FROM_WIRE_TOO_LONG,
    FROM_WIRE_OFFLOAD,
    FROM_WIRE_ASTRAY,
    HANDOVER_FULL,
    HANDOVER_MOVED,
    TO_WIRE_FULL,
    TO_WIRE_ERROR,
) = range(len(DROPS))

# --- faults: they stop one VM port until its driver starts again ---
FAULTS: tuple[tuple[str, str], ...] = (
    ("none", ""),
    ("avail_jump", "the available index is more than the queue size ahead (virtio-1.2 §2.7.6)"),
    ("head_range", "the available ring names a descriptor beyond the table (virtio-1.2 §2.7.6)"),
    ("next_range", "a descriptor chain leads beyond the table (virtio-1.2 §2.7.5)"),
    ("chain_loop", "a descriptor chain is longer than the queue size: it loops (virtio-1.2 §2.7.5.2)"),
    ("memory_gone", "guest memory disappeared under the engine: its file was truncated"),
    ("direct_order", "the kernel did not fill receive buffers in the order in which it was given them"),
)
FAULT_BASE = 64  # a chain that is refused gives -1 - drop, or -1 - FAULT_BASE - fault
NO_FAULT, AVAIL_JUMP, HEAD_RANGE, NEXT_RANGE, CHAIN_LOOP, MEMORY_GONE, DIRECT_ORDER = range(len(FAULTS))
