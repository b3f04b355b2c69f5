# SPDX-License-Identifier: Apache-2.0
"""A program on a device, for as long as a descriptor is open.

A link is the kernel's promise: when its last descriptor is closed, by us or by the end of the process whatever ended
it, the program is off the device. Nobody else can replace a program that a link holds.
linux-bpf.h BPF_LINK_CREATE
"""

from __future__ import annotations

from vmq import linux
from vmq.abi import bpf
from vmq.bpf.descriptor import Descriptor
from vmq.bpf.maps import attribute
from vmq.bpf.program import Program


class Link(Descriptor):
    """`program` at a hook of the device number `target`. `flags` choose between the hooks of XDP."""

    def __init__(self, program: Program, target: int, hook: int = bpf.BPF_XDP, flags: int = 0) -> None:
        asked = attribute(bpf.link_create, prog_fd=program.fd, target=target, attach_type=hook, flags=flags)
        self.fd = linux.bpf(bpf.BPF_LINK_CREATE, asked)
