# SPDX-License-Identifier: Apache-2.0
"""A descriptor is given up once, however often it is closed."""

from __future__ import annotations

import os

from vmq.bpf.descriptor import Descriptor


def test_a_descriptor_is_closed_once_at_the_end_of_its_block() -> None:
    one = Descriptor()
    one.fd = os.eventfd(0)
    held = one.fd
    with one as same:
        assert same is one
        os.fstat(held)
    assert one.fd == -1
    other = os.eventfd(0)
    os.dup2(other, held)  # the number is somebody else's now
    one.close()
    os.fstat(held)
    for theirs in {other, held}:
        os.close(theirs)
