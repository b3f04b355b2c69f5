# SPDX-License-Identifier: Apache-2.0
"""Memory by address, ordered access and system calls: the same meaning in both modes.

Each kernel here is called from Python, as compiled code calls what `overload` gives it, and as a plain function.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmq.abi.layout import i64, layout, u8, u16
from vmq.clock import c_clock_gettime
from vmq.jit import (
    LONG,
    address_of,
    at,
    atomic_or,
    c_epoll_wait,
    c_read,
    c_write,
    compile_for,
    copy,
    copy_short,
    fence,
    int64,
    kernel,
    load_acquire,
    load_once,
    peek,
    poke,
    prefetch,
    same_bytes,
    signal_handler,
    store_release,
    watch_compilation,
)

ROOT = Path(__file__).resolve().parents[1]
row = layout(16, ("count", i64), ("index", u16), ("byte", u8), ("rest", u8, (5,)))


@kernel
def hints(address: int, nowhere: int) -> None:
    prefetch(address, 0)
    prefetch(address, 1)
    prefetch(nowhere, 0)


@kernel
def sum_at(address: int, count: int) -> int:
    total = int64(0)
    for value in at(address, count, np.uint16):
        total += int64(value)
    return total


@kernel
def change_row(address: int) -> None:
    one = at(address, 2, row)[1]
    one["count"] += 5
    one["index"] = (int64(one["index"]) + 1) & 65535


@kernel
def peek_all(address: int) -> tuple[int, int, int, int]:
    return (
        int64(peek(address, np.uint8)),
        int64(peek(address + 1, np.uint16)),
        int64(peek(address + 3, np.uint32)),
        int64(peek(address + 7, np.uint64)),
    )


@kernel
def poke_all(address: int, value: int) -> None:
    poke(address, np.uint8, value & 255)
    poke(address + 1, np.uint16, value & 65535)
    poke(address + 3, np.uint32, value & 4294967295)


@kernel
def move(to: int, source: int, count: int) -> int:
    copy(to, source, count)
    return address_of(at(to, 1, np.uint8))


@kernel
def move_short(to: int, source: int, count: int) -> None:
    copy_short(to, source, count)


@kernel
def exchange(address: int) -> tuple[int, int, int]:
    """Ordered access in its two forms: (array, index) and (record, name)."""
    rows = at(address, 1, row)
    one = rows[0]
    words = at(address, 1, np.int64)
    store_release(one, "index", load_acquire(one, "index") + 2)
    atomic_or(one, "byte", 9)
    store_release(words, 0, load_once(words, 0) + 1)
    atomic_or(words, 0, 256)
    fence()
    return int64(load_once(one, "count")), int64(load_acquire(one, "index")), int64(load_once(one, "byte"))


@kernel
def calls(descriptor: int, buffer: int, count: int) -> tuple[int, int]:
    return c_write(descriptor, buffer, count), c_read(descriptor, buffer, count)


@kernel
def clock(buffer: int) -> int:
    return c_clock_gettime(1, buffer)


@kernel
def wait_on(descriptor: int, buffer: int) -> int:
    return c_epoll_wait(descriptor, buffer, 1, 0)


@kernel
def compare(first: int, second: int, count: int) -> bool:
    return same_bytes(first, second, count)


@kernel
def compiled_late(value: int) -> int:
    return value + 1


def test_memory_at_an_address_is_the_memory():
    data = np.arange(10, dtype=np.uint16)
    assert sum_at(address_of(data), 10) == 45
    assert sum_at(address_of(data) + 2, 3) == 6
    assert sum_at(address_of(data), 0) == 0
    assert sum_at(0, 0) == 0


def test_a_record_is_changed_in_place_and_its_neighbours_are_not():
    rows = np.zeros(3, row)
    rows["index"] = 65535
    change_row(address_of(rows))
    assert rows["count"].tolist() == [0, 5, 0]
    assert rows["index"].tolist() == [65535, 0, 65535]


@pytest.mark.parametrize("shift", range(4))
def test_numbers_are_read_and_written_at_any_alignment(shift):
    data = np.zeros(40, np.uint8)
    data[shift : shift + 15] = range(1, 16)
    expected = [
        int.from_bytes(data[shift + a : shift + b].tobytes(), "little")
        for a, b in ((0, 1), (1, 3), (3, 7), (7, 15))
    ]
    assert list(peek_all(address_of(data) + shift)) == expected
    poke_all(address_of(data) + shift, 0x1_8899_AABB)
    assert data[shift : shift + 7].tobytes() == bytes.fromhex("bbbbaabbaa9988")
    assert data[shift + 7] == 8


def test_bytes_are_copied_and_an_address_is_a_number():
    source, target = np.arange(20, dtype=np.uint8), np.zeros(20, np.uint8)
    assert move(address_of(target) + 2, address_of(source), 10) == address_of(target) + 2
    assert target.tobytes() == bytes(2) + bytes(range(10)) + bytes(8)


@pytest.mark.parametrize("count", [0, LONG - 1, LONG, LONG + 1, 2036, 9014, 65535])
def test_many_bytes_are_copied_exactly_by_either_instruction(count):
    source = np.random.default_rng(3).integers(0, 256, count + 80, np.uint8)
    target = np.zeros(count + 80, np.uint8)
    for shift in (0, 1, 13):
        target[:] = 0
        move(address_of(target) + 40 + shift, address_of(source) + shift, count)
        assert target[40 + shift : 40 + shift + count].tobytes() == source[shift : shift + count].tobytes()
        assert not target[: 40 + shift].any()
        assert not target[40 + shift + count :].any()


@pytest.mark.parametrize("shift", [0, 1, 13])
def test_few_bytes_are_copied_exactly_whatever_their_number(shift):
    """Steps overlap within the range: not a byte before or behind it is written."""
    source = np.arange(400, dtype=np.int64).astype(np.uint8) ^ np.uint8(0x5A)
    for count in range(320):
        target = np.zeros(400, np.uint8)
        move_short(address_of(target) + 40 + shift, address_of(source) + shift, count)
        assert target[40 + shift : 40 + shift + count].tobytes() == source[shift : shift + count].tobytes()
        assert not target[: 40 + shift].any()
        assert not target[40 + shift + count :].any()


def test_ordered_access_reads_and_writes_items_and_fields():
    rows = np.zeros(1, row)
    rows[0]["count"], rows[0]["index"], rows[0]["byte"] = 4, 7, 2
    assert exchange(address_of(rows)) == (261, 9, 11)
    assert [int(rows[0][name]) for name in ("count", "index", "byte")] == [261, 9, 11]


def test_a_system_call_gives_its_result_or_minus_errno():
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    buffer = np.ones(1, np.uint64)
    try:
        assert calls(descriptor, address_of(buffer), 8) == (8, 8)
        assert calls(descriptor, address_of(buffer), 4) == (-errno.EINVAL, -errno.EINVAL)
        buffer[0] = (1 << 64) - 1
        assert calls(descriptor, address_of(buffer), 8) == (-errno.EINVAL, -errno.EAGAIN)
    finally:
        os.close(descriptor)
    assert calls(-1, address_of(buffer), 8) == (-errno.EBADF, -errno.EBADF)


def test_system_calls_of_other_arities_work_too():
    buffer = np.zeros(2, np.int64)
    assert clock(address_of(buffer)) == 0
    assert buffer[0] > 0
    assert wait_on(-1, address_of(buffer)) == -errno.EBADF, "a C int is negative in its lower half"


def test_bytes_are_equal_or_not():
    data = np.array([1, 2, 3, 200, 1, 2, 3, 201], np.uint8)
    assert compare(address_of(data), address_of(data) + 4, 3)
    assert not compare(address_of(data), address_of(data) + 4, 4)
    assert compare(address_of(data), address_of(data) + 4, 0)


def test_widening_keeps_64_bits():
    assert int64(np.uint16(65535)) + 1 == 65536
    assert int64(np.uint64(1 << 63)) == -(1 << 63)


def test_a_hint_changes_nothing():
    """Any address will do: nothing is read there."""
    cells = np.arange(16)
    hints(address_of(cells), 8)
    assert cells.tolist() == list(range(16))


# --- compilation -------------------------------------------------------------------------------


@pytest.mark.compiled
def test_what_is_compiled_is_told_by_name():
    names: list[str] = []
    with watch_compilation(names.append):
        compile_for(
            compiled_late, "int32"
        )  # a signature that nobody asks for, so that the cache does not know it
    assert compiled_late(1) == 2
    assert set(names) <= {"compiled_late"}


@pytest.mark.interpreted
def test_interpreted_nothing_is_compiled():
    names: list[str] = []
    with watch_compilation(names.append):
        compile_for(compiled_late, "int64")
        assert compiled_late(1) == 2
    assert names == []


@pytest.mark.compiled
def test_a_kernel_holds_no_lock_of_the_interpreter():
    """Python goes on while a kernel waits in a system call."""
    near, far = os.pipe()
    buffer = np.zeros(8, np.uint8)
    calls(-1, address_of(buffer), 8)
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(calls(near, address_of(buffer), 8)))
    thread.start()
    assert not done
    os.write(far, b"x")
    thread.join(30)
    assert done == [(-errno.EBADF, 1)]
    os.close(near)
    os.close(far)


# --- signals -------------------------------------------------------------------------------------------------

SEEN = (
    0x2100_0000_0000  # a number compiled into cached code: memory of this run lies there in the next one too
)


@kernel
def note_signal(number: int, information: int, _context: int) -> None:
    seen = at(SEEN, 2, np.int64)
    seen[0] = number
    seen[1] = information


SCRIPT = """
import os, signal
import numpy as np
from tests.test_jit import SEEN, handler
from vmq import linux
from vmq.jit import at
linux.map_fixed(SEEN, linux.PAGE)
linux.install_handler(signal.SIGUSR1, handler())
os.kill(os.getpid(), signal.SIGUSR1)
seen = at(SEEN, 2, np.int64)
assert seen[0] == signal.SIGUSR1 and seen[1] != 0, seen
print("handled")
"""

handler = signal_handler(note_signal)


@pytest.mark.compiled
def test_a_kernel_is_a_signal_handler():
    """In a process of its own: the handler of a test must not outlive it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_the_address_of_a_handler_is_made_once():
    assert handler() == handler() != 0
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
