# SPDX-License-Identifier: Apache-2.0
"""Maps of every kind in the running kernel: what is set is there, what is not is None, and closing gives them back."""

from __future__ import annotations

import errno
import os
import socket

import numpy as np
import pytest

from vmq.abi import bpf
from vmq.bpf import maps

pytestmark = pytest.mark.root


def test_a_hash_keeps_what_it_is_given_and_its_keys_can_be_listed():
    with maps.hash_map("test", 2, 8, 4) as table:
        first, second = b"firstkey", b"second!!"
        assert table.lookup(first) is None
        table.update(first, b"aaaa")
        table.update(second, b"bbbb")
        table.update(first, b"cccc")
        assert sorted(table.keys()) == [first, second]
        assert table.lookup(first) == b"cccc"
        with pytest.raises(OSError) as caught:
            table.update(b"thirdkey", b"dddd")
        assert caught.value.errno == errno.E2BIG
        table.delete(first)
        table.delete(first)
        assert list(table.keys()) == [second]


def test_sizes_are_judged_before_the_kernel_reads_beyond_them():
    with maps.hash_map("test", 2, 8, 4) as table:
        with pytest.raises(ValueError, match="8 bytes, not 7"):
            table.lookup(b"7 bytes")
        with pytest.raises(ValueError, match="4 bytes"):
            table.update(b"8 bytes!", b"12345678")


def test_counters_are_summed_over_all_processors():
    with maps.counters("test", 2) as table:
        values = np.arange(1, maps.possible_cpus() + 1, dtype=np.uint64)
        table.update((1).to_bytes(4, "little"), values.tobytes())
        assert table.total(1) == values.sum()
        assert table.total(0) == 0


def test_devices_and_sockets_are_checked_by_the_kernel():
    """A map of devices takes devices that there are; a map of sockets AF_XDP sockets, and loses one that is closed."""
    with maps.device_map("test", 2) as devices:
        lo = socket.if_nametoindex("lo").to_bytes(4, "little")
        devices.update(bytes(4), lo)
        assert devices.lookup(bytes(4)) == lo
        with pytest.raises(OSError):
            devices.update(bytes(4), (0x7FFFFFFF).to_bytes(4, "little"))
    with maps.socket_map("test", 2) as sockets, socket.socket() as wrong, pytest.raises(OSError):
        sockets.update(bytes(4), wrong.fileno().to_bytes(4, "little"))


def test_a_map_that_is_refused_is_an_error_of_the_system():
    with pytest.raises(OSError, match="Invalid argument"):
        maps.Map(bpf.BPF_MAP_TYPE_HASH, "test", 0)


def test_closing_gives_the_descriptor_back_and_may_be_repeated():
    before = os.listdir("/proc/self/fd")
    table = maps.hash_map("test", 1, 8, 4)
    table.close()
    table.close()
    assert os.listdir("/proc/self/fd") == before
