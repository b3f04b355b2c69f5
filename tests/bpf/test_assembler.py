# SPDX-License-Identifier: Apache-2.0
"""Instructions against bytes that were written by hand from linux-bpf.h, and what is refused before the kernel sees it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest

from vmq.abi import bpf
from vmq.bpf.assembler import BYTE, DOUBLE, FP, HALF, R0, R1, R2, R3, R4, R6, R9, WORD, Code


@dataclass
class Opened:
    fd: int


def golden(*instructions: tuple[int, int, int, int, int]) -> bytes:
    """(op, destination, source, offset, immediate) as struct bpf_insn."""
    return b"".join(
        struct.pack("=BBhi", op, to | source << 4, off, imm) for op, to, source, off, imm in instructions
    )


def test_the_program_that_redirects_every_frame_of_a_queue():
    code = Code()
    code.load_field(R2, R1, bpf.xdp_md, "rx_queue_index")
    code.load_map(R1, Opened(7))
    code.let(R3, "=", 2)
    code.call(51)
    code.exit()
    assert len(code) == 6
    assert code.assemble() == golden(
        (0x61, 2, 1, 16, 0), (0x18, 1, 1, 0, 7), (0, 0, 0, 0, 0), (0xB7, 3, 0, 0, 2), (0x85, 0, 0, 0, 51), (0x95, 0, 0, 0, 0)
    )  # fmt: skip


def test_jumps_count_the_instructions_behind_them_forward_and_back():
    """A map takes two."""
    code = Code()
    code.label("again")
    code.jump_if("end", R4, ">", R3, register=True)
    code.load_map(R1, Opened(3))
    code.jump_if("again", R0, "==", -1)
    code.jump("end")
    code.label("end")
    code.exit()
    assert code.assemble() == golden(
        (0x2D, 4, 3, 4, 0), (0x18, 1, 1, 0, 3), (0, 0, 0, 0, 0), (0x15, 0, 0, -4, -1), (0x05, 0, 0, 0, 0), (0x95, 0, 0, 0, 0)
    )  # fmt: skip


@pytest.mark.parametrize(("size", "load", "store", "value"), [
    (BYTE, 0x71, 0x73, 0x72), (HALF, 0x69, 0x6B, 0x6A), (WORD, 0x61, 0x63, 0x62), (DOUBLE, 0x79, 0x7B, 0x7A)
])  # fmt: skip
def test_loads_and_stores_of_every_size(size: int, load: int, store: int, value: int):
    code = Code()
    code.load(R9, R6, -2, size)
    code.store(FP, -8, R9, size)
    code.store_value(FP, -8, 5, size)
    assert code.assemble() == golden((load, 9, 6, -2, 0), (store, 10, 9, -8, 0), (value, 10, 0, -8, 5))


@pytest.mark.parametrize(("operation", "with_value", "with_register"), [
    ("=", 0xB7, 0xBF), ("+=", 0x07, 0x0F), ("-=", 0x17, 0x1F), ("*=", 0x27, 0x2F), ("|=", 0x47, 0x4F), ("&=", 0x57, 0x5F),
    ("<<=", 0x67, 0x6F), (">>=", 0x77, 0x7F), ("%=", 0x97, 0x9F), ("^=", 0xA7, 0xAF),
])  # fmt: skip
def test_arithmetic_with_values_and_registers(operation: str, with_value: int, with_register: int):
    code = Code()
    code.let(R1, operation, -9)
    code.let(R1, operation, R6, register=True)
    assert code.assemble() == golden((with_value, 1, 0, 0, -9), (with_register, 1, 6, 0, 0))


@pytest.mark.parametrize(("condition", "with_value", "with_register"), [
    ("==", 0x15, 0x1D), (">", 0x25, 0x2D), (">=", 0x35, 0x3D), ("&", 0x45, 0x4D), ("!=", 0x55, 0x5D), ("<", 0xA5, 0xAD),
    ("<=", 0xB5, 0xBD),
])  # fmt: skip
def test_conditions_with_values_and_registers(condition: str, with_value: int, with_register: int):
    code = Code()
    code.label("here")
    code.jump_if("here", R1, condition, 4)
    code.jump_if("here", R1, condition, R6, register=True)
    assert code.assemble() == golden((with_value, 1, 0, -1, 4), (with_register, 1, 6, -2, 0))


def test_byte_order_and_copies():
    code = Code()
    code.swap(R1, 16)
    code.copy(R6, R1)
    assert code.assemble() == golden((0xDC, 1, 0, 0, 16), (0xBF, 6, 1, 0, 0))


def test_a_label_is_there_once():
    code = Code()
    code.jump("nowhere")
    with pytest.raises(ValueError, match="no label 'nowhere'"):
        code.assemble()
    code.label("nowhere")
    with pytest.raises(ValueError, match="twice"):
        code.label("nowhere")


def test_what_does_not_fit_is_refused():
    code = Code()
    code.let(R1, "=", 1 << 31)
    with pytest.raises(OverflowError):
        code.assemble()
