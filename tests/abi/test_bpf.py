# SPDX-License-Identifier: Apache-2.0
"""Our declarations of bpf(2) against the C compiler's, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmq.abi import bpf
from vmq.abi.layout import offset

FIELDS = {
    "map_create": ["map_type", "key_size", "value_size", "max_entries", "map_flags", "inner_map_fd", "numa_node", "map_name"],
    "map_element": ["map_fd", "key", "value", "flags"],
    "prog_load": ["prog_type", "insn_cnt", "insns", "license", "log_level", "log_size", "log_buf", "kern_version",
                  "prog_flags", "prog_name", "prog_ifindex", "expected_attach_type"],
    "test_run": [f"test.{name}" for name in ("prog_fd", "retval", "data_size_in", "data_size_out", "data_in", "data_out",
                                             "repeat", "duration", "ctx_size_in", "ctx_size_out", "ctx_in", "ctx_out", "flags", "cpu",
                                             "batch_size")],
    "link_create": ["link_create.prog_fd", "link_create.target_fd", "link_create.attach_type", "link_create.flags"],
}  # fmt: skip
CONSTANTS = [
    "BPF_MAP_CREATE", "BPF_MAP_GET_NEXT_KEY", "BPF_PROG_LOAD", "BPF_PROG_TEST_RUN", "BPF_LINK_CREATE",
    "BPF_MAP_TYPE_HASH", "BPF_MAP_TYPE_PERCPU_ARRAY", "BPF_MAP_TYPE_DEVMAP", "BPF_MAP_TYPE_XSKMAP",
    "BPF_PROG_TYPE_SOCKET_FILTER", "BPF_PROG_TYPE_SCHED_CLS", "BPF_PROG_TYPE_XDP", "BPF_XDP", "BPF_OBJ_NAME_LEN",
    "BPF_PSEUDO_MAP_FD", "BPF_F_TEST_XDP_LIVE_FRAMES", "BPF_FUNC_map_lookup_elem", "BPF_FUNC_skb_vlan_push", "BPF_FUNC_redirect", "BPF_FUNC_redirect_map",
    "BPF_FUNC_skb_load_bytes_relative", "BPF_HDR_START_MAC", "XDP_ABORTED", "XDP_PASS", "XDP_REDIRECT",
    "XDP_FLAGS_SKB_MODE", "XDP_FLAGS_DRV_MODE", "BPF_LDX", "BPF_ALU64", "BPF_MEM", "BPF_DW", "BPF_TO_BE",
    "BPF_END", "BPF_CALL", "BPF_EXIT",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_offsets_and_numbers_are_those_of_the_headers(tmp_path: Path) -> None:
    lines = [
        f'printf("%zu\\n", offsetof(union bpf_attr, {field}));'
        for fields in FIELDS.values()
        for field in fields
    ]
    lines += [f'printf("%d\\n", (int)({name}));' for name in CONSTANTS]
    lines += [f'printf("%zu\\n", sizeof(struct {name}));' for name in ("bpf_insn", "xdp_md")]
    source = tmp_path / "bpf.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/bpf.h>\n#include <linux/if_link.h>\n"
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    subprocess.run(["cc", "-o", str(tmp_path / "bpf"), str(source)], check=True)
    told = [
        int(line)
        for line in subprocess.run([str(tmp_path / "bpf")], check=True, capture_output=True).stdout.split()
    ]

    ours = [offset(getattr(bpf, name), own) for name in FIELDS for own in getattr(bpf, name).names]
    assert ours == told[: len(ours)]
    assert [getattr(bpf, name) for name in CONSTANTS] == told[len(ours) : -2]
    assert [bpf.instruction.itemsize, bpf.xdp_md.itemsize] == told[-2:]
