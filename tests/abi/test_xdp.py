# SPDX-License-Identifier: Apache-2.0
"""Our declarations of AF_XDP against the C compiler's, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmq.abi import xdp
from vmq.abi.layout import offset

STRUCTURES = {
    "sockaddr_xdp": ("sockaddr", {"ifindex": "sxdp_ifindex", "shared_umem_fd": "sxdp_shared_umem_fd"}),
    "xdp_ring_offset": ("ring_offset", {"desc": "desc", "flags": "flags"}),
    "xdp_mmap_offsets": ("mmap_offsets", {"tx": "tx", "fill": "fr", "completion": "cr"}),
    "xdp_desc": ("desc", {"len": "len", "options": "options"}),
    "xdp_statistics": ("statistics", {"rx_ring_full": "rx_ring_full"}),
}
CONSTANTS = {
    name: name
    for name in dir(xdp)
    if name.startswith(("XDP_", "SOL_", "AF_")) and name != "XDP_OPTIONS_ZEROCOPY"
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_offsets_and_numbers_are_those_of_the_headers(tmp_path: Path) -> None:
    lines, ours = [], []
    for name, (own, fields) in STRUCTURES.items():
        dtype = getattr(xdp, own)
        lines.append(f"sizeof(struct {name})")
        ours.append(dtype.itemsize)
        for field, theirs in fields.items():
            lines.append(f"offsetof(struct {name}, {theirs})")
            ours.append(offset(dtype, field))
    lines += CONSTANTS
    ours += [getattr(xdp, name) for name in CONSTANTS]
    source = tmp_path / "xdp.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/socket.h>\n#include <linux/bpf.h>\n"
        "#include <linux/if_xdp.h>\nint main(void) {\n"
        + "\n".join(f'printf("%llu\\n", (unsigned long long)({line}));' for line in lines)
        + "\nreturn 0; }\n"
    )
    subprocess.run(["cc", "-o", str(tmp_path / "xdp"), str(source)], check=True)
    told = subprocess.run([str(tmp_path / "xdp")], check=True, capture_output=True).stdout.split()
    assert ours == [int(line) for line in told]
