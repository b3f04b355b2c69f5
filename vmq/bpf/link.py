# SPDX-License-Identifier: Apache-2.0
"""A program on a device, for as long as a descriptor is open.

A link is the kernel's promise: when its last descriptor is closed, by us or by the end of the process whatever ended
it, the program is off the device. Nobody else can replace a program that a link holds; `update` does, in one step.
linux-bpf.h BPF_LINK_CREATE
"""

from __future__ import annotations

import os
from typing import Self

from vmq import linux
from vmq.abi import bpf
from vmq.bpf.maps import attribute
from vmq.bpf.program import Program


class Link:
    """`program` at a hook of the device number `target`. `flags` choose between the hooks of XDP."""

    def __init__(self, program: Program, target: int, hook: int = bpf.BPF_XDP, flags: int = 0) -> None:
        asked = attribute(bpf.link_create, prog_fd=program.fd, target=target, attach_type=hook, flags=flags)
        self.fd = linux.bpf(bpf.BPF_LINK_CREATE, asked)

    def update(self, program: Program) -> None:
        """Another program in its place; every frame meets one of the two."""
        linux.bpf(bpf.BPF_LINK_UPDATE, attribute(bpf.link_update, link_fd=self.fd, new_prog_fd=program.fd))

    def close(self) -> None:
        """Take the program off the device. It may be called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
