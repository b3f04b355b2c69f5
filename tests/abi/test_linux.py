# SPDX-License-Identifier: Apache-2.0
"""Our declarations of kernel structures against the C compiler's, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vmq.abi import linux
from vmq.abi.layout import offset

STRUCTURES = {
    "struct epoll_event": ("epoll_event", {"events": "events", "data": "data"}),
    "struct iovec": ("iovec", {"base": "iov_base", "len": "iov_len"}),
    "struct msghdr": (
        "msghdr",
        {"name": "msg_name", "iov": "msg_iov", "control": "msg_control", "flags": "msg_flags"},
    ),
    "struct mmsghdr": ("mmsghdr", {"hdr": "msg_hdr", "len": "msg_len"}),
    "struct cmsghdr": ("cmsghdr", {"len": "cmsg_len", "level": "cmsg_level", "type": "cmsg_type"}),
    "struct packet_mreq": (
        "packet_mreq",
        {"ifindex": "mr_ifindex", "alen": "mr_alen", "address": "mr_address"},
    ),
    "struct tpacket_auxdata": ("tpacket_auxdata", {"status": "tp_status", "vlan_tci": "tp_vlan_tci"}),
    "struct timespec": ("timespec", {"sec": "tv_sec", "nsec": "tv_nsec"}),
}
HEADERS = ("stddef.h", "stdio.h", "time.h", "sys/epoll.h", "sys/socket.h", "sys/uio.h", "linux/if_packet.h")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_structures_have_the_sizes_and_offsets_of_the_headers(tmp_path: Path) -> None:
    lines = []
    for name, (_, fields) in STRUCTURES.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        lines += [f'printf("%zu\\n", offsetof({name}, {field}));' for field in fields.values()]
    includes = "\n".join(f"#include <{header}>" for header in HEADERS)
    source = tmp_path / "layout.c"
    source.write_text(
        f"#define _GNU_SOURCE\n{includes}\nint main(void) {{\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    subprocess.run(["cc", "-o", str(tmp_path / "layout"), str(source)], check=True)
    told = iter(subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True).stdout.split())

    for ours, fields in STRUCTURES.values():
        dtype = getattr(linux, ours)
        assert dtype.itemsize == int(next(told)), ours
        for field in fields:
            assert offset(dtype, field) == int(next(told)), (ours, field)


def test_fault_address_follows_the_three_numbers_of_siginfo() -> None:
    """linux-signal.h: si_signo, si_errno, si_code, padding, si_addr."""
    assert offset(linux.siginfo_fault, "address") == 16
    assert np.zeros(1, linux.siginfo_fault)["signo"].dtype == np.int32
