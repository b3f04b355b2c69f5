# SPDX-License-Identifier: Apache-2.0
"""The programs of an xdp uplink: what the kernel decides about a frame before anything is written.

    shorter than its headers ──► kernel          longer than a buffer ──► kernel
    group address            ──► kernel: the host has it, and the engine its copy by a packet socket
    (MAC, VLAN) of a VM      ──► the AF_XDP socket of its NIC queue; without a socket there, the kernel
    the same, if it is direct ─► the VM's own pair (vmq/direct/); without one there, the kernel
    the same, on its own NIC queue ► the VM's own socket there; longer than its guest takes, the kernel
    anything else            ──► kernel: the host keeps its NIC

The lookup is the engine's own: the key is `bucket.key` of dataplane/state.py, the address and the VLAN of an 802.1Q tag
above it, 0 for untagged and priority-tagged frames. A frame that the engine would give to a VM's address and a frame
that is redirected are therefore the same, and a test holds them against each other. Each verdict has a counter.

What the kernel keeps comes up to the packet sockets, too. `watcher` lets through what may be the engine's: groups, and
addresses of VMs (in another VLAN: a near miss; on a NIC queue without a socket: the frame itself).
"""

from __future__ import annotations

from vmq.abi import bpf
from vmq.abi.ethernet import (
    ETH_ALEN,
    ETH_HLEN,
    ETH_TYPE_OFFSET,
    MAC_GROUP_BIT,
    TPID_8021Q_LE,
    VLAN_HLEN,
    VLAN_VID_MASK,
)
from vmq.bpf.assembler import BYTE, DOUBLE, FP, HALF, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, WORD, Code
from vmq.bpf.maps import Map
from vmq.dataplane.state import FRAME_MAX, VID_SHIFT

# (name, where the frame went and why), in the order of the counters.
VERDICTS: tuple[tuple[str, str], ...] = (
    ("steered", "the address of a VM: to its socket"),
    ("group", "broadcast or multicast: to the kernel, and to the engine as a copy"),
    ("nobody", "no receive filter names the address in its VLAN: to the kernel"),
    ("direct", "the address of a VM whose queue is direct: into its pair"),
    ("no_socket", "for a VM, on a NIC queue without a socket: to the kernel, and to the engine as a copy"),
    ("too_long", "longer than a buffer: to the kernel"),
    ("runt", "shorter than its Ethernet header or tag: to the kernel"),
    ("own_queue", "the address of a VM, on the NIC queue that is its own: to its socket"),
)
STEERED, GROUP, NOBODY, DIRECT, NO_SOCKET, TOO_LONG, RUNT, OWN_QUEUE = range(len(VERDICTS))
SOCKET = 0  # what a filter leads to, if not to a pair or a socket of the VM's own
OWN_BIT, LENGTH_BIT = (
    31,
    16,
)  # of a value: it is for a socket of its own; where the longest frame stands, above the NIC queue
LENGTH_MASK, QUEUE_MASK = (1 << 15) - 1, (1 << 16) - 1
KEY, VERDICT = -8, -16  # places on the stack


def to_pair(number: int) -> int:
    """The value of a filter that leads to this pair."""
    return number + 1


def to_own_queue(queue: int, longest: int) -> int:
    """The value of a filter that leads to the VM's own socket, on this NIC queue; on others as SOCKET does."""
    return 1 << OWN_BIT | longest << LENGTH_BIT | queue


def steering(filters: Map, sockets: Map, pairs: Map, own_sockets: Map, counted: Map, longest: int) -> Code:
    """The XDP program. `longest`: bytes of a frame, tag included, that a socket takes.

    The value of a filter is SOCKET, `to_pair()` or `to_own_queue()`.
    """
    code = Code()
    code.copy(R6, R1)
    code.load_field(R7, R6, bpf.xdp_md, "data")
    code.load_field(R8, R6, bpf.xdp_md, "data_end")
    need(code, ETH_HLEN)
    code.copy(R1, R8)
    code.let(R1, "-=", R7, register=True)
    code.jump_if("too_long", R1, ">", longest)
    code.load(R1, R7, 0, BYTE)
    code.jump_if("group", R1, "&", MAC_GROUP_BIT)
    frame_key(code)
    look_up(code, filters, KEY, "nobody")
    code.load(R2, R0, 0, WORD)
    code.load_field(R3, R6, bpf.xdp_md, "rx_queue_index")
    code.jump_if("socket", R2, "==", SOCKET)
    code.copy(R1, R2)
    code.let(R1, ">>=", OWN_BIT)
    code.jump_if("direct", R1, "==", 0)
    _own_queue(code, own_sockets)
    code.label("socket")
    code.copy(R2, R3)
    redirect(code, sockets, STEERED, bpf.XDP_PASS, NO_SOCKET)
    code.label("direct")
    code.let(R2, "-=", 1)
    redirect(code, pairs, DIRECT, bpf.XDP_PASS, NO_SOCKET)
    for name, verdict in (("group", GROUP), ("nobody", NOBODY), ("too_long", TOO_LONG), ("runt", RUNT)):
        code.label(name)
        code.let(R1, "=", verdict)
        code.let(R6, "=", bpf.XDP_PASS)
        if verdict != RUNT:
            code.jump("count")
    count(code, counted)
    return code


def _own_queue(code: Code, own_sockets: Map) -> None:
    """The frame is for a VM with the NIC queue in R2; it has come by that in R3: by another one, it goes on at "socket"."""
    code.copy(R1, R2)
    code.let(R1, "&=", QUEUE_MASK)
    code.jump_if("socket", R1, "!=", R3, register=True)
    code.copy(R5, R2)
    code.let(R5, ">>=", LENGTH_BIT)
    code.let(R5, "&=", LENGTH_MASK)
    code.copy(R1, R8)
    code.let(R1, "-=", R7, register=True)
    leave_out_tag(code)
    code.jump_if("too_long", R1, ">", R5, register=True)
    code.copy(R2, R3)
    redirect(code, own_sockets, OWN_QUEUE, bpf.XDP_PASS, NO_SOCKET)


def leave_out_tag(code: Code) -> None:
    """Of R1, the length of the frame at R7: its 802.1Q tag, if it has one. A buffer has room for that, too."""
    code.load(R2, R7, ETH_TYPE_OFFSET, HALF)
    code.jump_if("length", R2, "!=", TPID_8021Q_LE)
    code.let(R1, "-=", VLAN_HLEN)
    code.label("length")


def need(code: Code, length: int) -> None:
    """The frame has `length` bytes, or goes to "runt": what the verifier wants to see before each read."""
    code.copy(R4, R7)
    code.let(R4, "+=", length)
    code.jump_if("runt", R4, ">", R8, register=True)


def frame_key(code: Code) -> None:
    """On the stack: address and VLAN of the frame at R7."""
    code.load(R9, R7, 4, HALF)
    code.let(R9, "<<=", 32)
    code.load(R1, R7, 0, WORD)
    code.let(R9, "|=", R1, register=True)
    code.load(R1, R7, ETH_TYPE_OFFSET, HALF)
    code.jump_if("untagged", R1, "!=", TPID_8021Q_LE)
    need(code, ETH_HLEN + VLAN_HLEN)
    code.load(R1, R7, ETH_HLEN, HALF)
    code.swap(R1, 16)
    code.let(R1, "&=", VLAN_VID_MASK)
    code.let(R1, "<<=", VID_SHIFT)
    code.let(R9, "|=", R1, register=True)
    code.label("untagged")
    code.store(FP, KEY, R9, DOUBLE)


def look_up(code: Code, table: Map, place: int, otherwise: str) -> None:
    """R0: where the value lies whose key stands on the stack at `place`; without one it goes on at `otherwise`."""
    code.copy(R2, FP)
    code.let(R2, "+=", place)
    code.load_map(R1, table)
    code.call(bpf.BPF_FUNC_map_lookup_elem)
    code.jump_if(otherwise, R0, "==", 0)


def redirect(code: Code, table: Map, verdict: int, otherwise: int, refused: int) -> None:
    """To what stands under R2 in a map, counted as `verdict`; where nothing does, `otherwise`, counted as `refused`."""
    code.load_map(R1, table)
    code.let(R3, "=", otherwise)
    code.call(bpf.BPF_FUNC_redirect_map)
    code.copy(R6, R0)
    code.let(R1, "=", verdict)
    code.jump_if("count", R6, "==", bpf.XDP_REDIRECT)
    code.let(R1, "=", refused)
    code.jump("count")


def count(code: Code, counted: Map) -> None:
    """At "count": add one to the counter of verdict R1, and return R6."""
    code.label("count")
    code.store(FP, VERDICT, R1, WORD)
    look_up(code, counted, VERDICT, "return")
    code.load(R1, R0, 0, DOUBLE)
    code.let(R1, "+=", 1)
    code.store(R0, 0, R1, DOUBLE)
    code.label("return")
    code.copy(R0, R6)
    code.exit()


def watcher(addresses: Map) -> Code:
    """The filter of the packet sockets: groups, and frames to `addresses` whatever their VLAN."""
    code = Code()
    code.store_value(FP, KEY, 0, DOUBLE)
    code.let(R2, "=", 0)
    code.copy(R3, FP)
    code.let(R3, "+=", KEY)
    code.let(R4, "=", ETH_ALEN)
    code.let(R5, "=", bpf.BPF_HDR_START_MAC)
    code.call(bpf.BPF_FUNC_skb_load_bytes_relative)
    code.jump_if("none", R0, "!=", 0)
    code.load(R1, FP, KEY, BYTE)
    code.jump_if("all", R1, "&", MAC_GROUP_BIT)
    look_up(code, addresses, KEY, "none")
    code.label("all")
    code.let(R0, "=", FRAME_MAX)
    code.exit()
    code.label("none")
    code.let(R0, "=", 0)
    code.exit()
    return code
