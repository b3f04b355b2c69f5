# SPDX-License-Identifier: Apache-2.0
"""The program at the far end of a VM's pair: the last that looks at a frame before it is in guest memory.

    for this VM    its address in its VLAN, or a group  ──► its 802.1Q tag out, if it has a VLAN ──► the socket
    to nobody      a frame of our own that says: all before me have been through here            ──► counted
    to nobody, IP  another, that tells a socket of ours who works for this end (polling.py)      ──► kernel, to everybody
    anything else  not this VM's, or longer than its buffers                                     ──► dropped, counted

What leads here has looked at the filters already; a frame that comes all the same is another VM's, so the filters are asked
again. A frame that the socket cannot take is counted by the kernel as lost (`rx_dropped` and its like).
"""

from __future__ import annotations

from vmq.abi import bpf
from vmq.abi.ethernet import ETH_HLEN, ETH_TYPE_OFFSET, MAC_GROUP_BIT, TPID_8021Q_LE, VLAN_HLEN
from vmq.abi.inet import ETH_P_IP_LE
from vmq.bpf.assembler import BYTE, HALF, R0, R1, R2, R6, R7, R8, WORD, Code
from vmq.bpf.maps import Map
from vmq.uplink.xdp_program import KEY, count, frame_key, leave_out_tag, look_up, need, redirect

# (name, what became of the frame), in the order of the counters.
VERDICTS: tuple[tuple[str, str], ...] = (
    ("placed", "into the guest's next buffer, or lost by the socket"),
    ("no_socket", "the queue is not direct any more: dropped"),
    ("foreign", "no receive filter of this VM names it: dropped"),
    ("too_long", "longer than the buffers that are posted: dropped"),
    ("runt", "shorter than its headers: dropped"),
    ("mark", "the end of what was sent before"),
)
PLACED, NO_SOCKET, FOREIGN, TOO_LONG, RUNT, MARKED = range(len(VERDICTS))


def landing(filters: Map, sockets: Map, counted: Map, longest: int, *, strip: bool) -> Code:
    """The XDP program. `longest`: bytes of a frame without its 802.1Q tag; `strip`: take that out."""
    code = Code()
    code.copy(R6, R1)
    code.load_field(R7, R6, bpf.xdp_md, "data")
    code.load_field(R8, R6, bpf.xdp_md, "data_end")
    need(code, ETH_HLEN)
    code.load(R1, R7, 0, WORD)
    code.jump_if("to somebody", R1, "!=", 0)
    code.load(R1, R7, 4, HALF)
    code.jump_if("mark", R1, "==", 0)
    code.label("to somebody")
    code.load(R1, R7, 0, BYTE)
    code.jump_if("ours", R1, "&", MAC_GROUP_BIT)
    frame_key(code)
    look_up(code, filters, KEY, "foreign")
    code.label("ours")
    if strip:
        _strip(code)
    code.copy(R1, R8)
    code.let(R1, "-=", R7, register=True)
    if not strip:
        leave_out_tag(code)
    code.jump_if("too_long", R1, ">", longest)
    code.let(R2, "=", 0)
    redirect(code, sockets, PLACED, bpf.XDP_DROP, NO_SOCKET)
    code.label("mark")
    code.load(R1, R7, ETH_TYPE_OFFSET, HALF)
    code.jump_if("plain mark", R1, "!=", ETH_P_IP_LE)
    code.store_value(R7, 0, -1, WORD)
    code.store_value(R7, 4, -1, HALF)
    code.let(R0, "=", bpf.XDP_PASS)
    code.exit()
    for name, verdict in (
        ("foreign", FOREIGN),
        ("too_long", TOO_LONG),
        ("plain mark", MARKED),
        ("runt", RUNT),
    ):
        code.label(name)
        code.let(R1, "=", verdict)
        code.let(R6, "=", bpf.XDP_DROP)
        if verdict != RUNT:
            code.jump("count")
    count(code, counted)
    return code


def _strip(code: Code) -> None:
    """The frame at R7 without its 802.1Q tag, if it has one: addresses move up, and the head with them."""
    code.load(R1, R7, ETH_TYPE_OFFSET, HALF)
    code.jump_if("untagged here", R1, "!=", TPID_8021Q_LE)
    need(code, ETH_HLEN + VLAN_HLEN)
    for place in (8, 4, 0):  # the last of the addresses first: they overlap
        code.load(R1, R7, place, WORD)
        code.store(R7, place + VLAN_HLEN, R1, WORD)
    code.copy(R1, R6)
    code.let(R2, "=", VLAN_HLEN)
    code.call(bpf.BPF_FUNC_xdp_adjust_head)
    code.jump_if("runt", R0, "!=", 0)
    code.load_field(R7, R6, bpf.xdp_md, "data")
    code.load_field(R8, R6, bpf.xdp_md, "data_end")
    code.label("untagged here")


def mark() -> bytes:
    """A frame that only says where it stands among others: to an address that nobody can have."""
    return bytes(60)
