# SPDX-License-Identifier: Apache-2.0
"""bpf(2) as the kernel reads it: commands, one structure a command, instruction encoding, helpers, XDP's verdicts.

Read from linux-bpf.h. The kernel takes a shorter structure than its own union and counts the tail as zero, so each
structure ends behind the last field that we set; `size` of the call is its itemsize. An instruction is eight bytes;
its opcode is a class, and with loads and stores a size and a mode, with arithmetic and jumps an operation and where
the operand comes from.
"""

from __future__ import annotations

import platform

from vmq.abi.layout import i16, i32, layout, u8, u32, u64

# asm/unistd.h: the number of the system call
NR_BPF = 321 if platform.machine() == "x86_64" else 280

# enum bpf_cmd
BPF_MAP_CREATE, BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM = 0, 1, 2, 3
BPF_MAP_GET_NEXT_KEY, BPF_PROG_LOAD, BPF_PROG_TEST_RUN = 4, 5, 10
BPF_LINK_CREATE = 28

# enum bpf_map_type
BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_ARRAY = 1, 6
BPF_MAP_TYPE_DEVMAP, BPF_MAP_TYPE_XSKMAP = 14, 17

# enum bpf_prog_type, enum bpf_attach_type
BPF_PROG_TYPE_SOCKET_FILTER, BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_XDP = 1, 3, 6
BPF_XDP, BPF_TCX_INGRESS, BPF_TCX_EGRESS = 37, 46, 47
BPF_OBJ_NAME_LEN = 16  # with the NUL at the end

# union bpf_attr, a structure a command
map_create = layout(
    44,
    ("map_type", u32),
    ("key_size", u32),
    ("value_size", u32),
    ("max_entries", u32),
    ("map_flags", u32),
    ("inner_map_fd", u32),
    ("numa_node", u32),
    ("map_name", "S16"),
)
map_element = layout(32, ("map_fd", u32), ("key", u64), ("value", u64), ("flags", u64))
prog_load = layout(
    72,
    ("prog_type", u32),
    ("insn_cnt", u32),
    ("insns", u64),
    ("license", u64),
    ("log_level", u32),
    ("log_size", u32),
    ("log_buf", u64),
    ("kern_version", u32),
    ("prog_flags", u32),
    ("prog_name", "S16"),
    ("prog_ifindex", u32),
    ("expected_attach_type", u32),
)
test_run = layout(
    80,
    ("prog_fd", u32),
    ("retval", u32),
    ("data_size_in", u32),
    ("data_size_out", u32),
    ("data_in", u64),
    ("data_out", u64),
    ("repeat", u32),
    ("duration", u32),
    ("ctx_size_in", u32),
    ("ctx_size_out", u32),
    ("ctx_in", u64),
    ("ctx_out", u64),
    ("flags", u32),
    ("cpu", u32),
    ("batch_size", u32),
)
link_create = layout(16, ("prog_fd", u32), ("target", u32), ("attach_type", u32), ("flags", u32))

# struct bpf_insn: the low half of `registers` is the destination, the high half the source
instruction = layout(8, ("code", u8), ("registers", u8), ("offset", i16), ("immediate", i32))
BPF_LD, BPF_LDX, BPF_ST, BPF_STX, BPF_ALU, BPF_JMP, BPF_ALU64 = 0, 1, 2, 3, 4, 5, 7
BPF_W, BPF_H, BPF_B, BPF_DW = 0x00, 0x08, 0x10, 0x18
BPF_IMM, BPF_MEM = 0x00, 0x60
BPF_K, BPF_X = 0x00, 0x08
BPF_TO_BE = 0x08
BPF_OPERATIONS = {
    "+=": 0x00, "-=": 0x10, "*=": 0x20, "|=": 0x40, "&=": 0x50, "<<=": 0x60, ">>=": 0x70, "%=": 0x90, "^=": 0xA0,
    "=": 0xB0
}  # fmt: skip
BPF_END = 0xD0
BPF_CONDITIONS = {
    "==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0
}  # fmt: skip
BPF_JA, BPF_CALL, BPF_EXIT = 0x00, 0x80, 0x90
BPF_PSEUDO_MAP_FD = 1
BPF_F_TEST_XDP_LIVE_FRAMES = 2

# enum bpf_func_id
BPF_FUNC_map_lookup_elem, BPF_FUNC_skb_vlan_push, BPF_FUNC_redirect = 1, 18, 23
BPF_FUNC_xdp_adjust_head, BPF_FUNC_redirect_map = 44, 51
BPF_FUNC_skb_load_bytes_relative, BPF_HDR_START_MAC = 68, 0

# struct xdp_md as a program reads it: `data` and `data_end` are pointers to the verifier
xdp_md = layout(
    24,
    ("data", u32),
    ("data_end", u32),
    ("data_meta", u32),
    ("ingress_ifindex", u32),
    ("rx_queue_index", u32),
    ("egress_ifindex", u32),
)

# struct __sk_buff as a socket filter reads it, up to `hash`. The tag that the kernel has taken out of the frame stands in `vlan_*`,
# its TPID in network byte order.
sk_buff = layout(
    72,
    ("len", u32),
    ("pkt_type", u32),
    ("mark", u32),
    ("queue_mapping", u32),
    ("protocol", u32),
    ("vlan_present", u32),
    ("vlan_tci", u32),
    ("vlan_proto", u32),
    ("priority", u32),
    ("ingress_ifindex", u32),
    ("ifindex", u32),
    ("tc_index", u32),
    ("cb", u32, (5,)),
    ("hash", u32),
)
XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
TCX_NEXT = -1

# linux-rtnetlink.h: how a program of a device is attached
XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 2, 4
