# SPDX-License-Identifier: Apache-2.0
"""An assembler for eBPF: instructions in order, jumps to labels, maps by object.

        code = Code()
        code.load_field(R2, R1, xdp_md, "data")      r2 = ctx->data
        code.jump_if("pass", R2, ">", R3, register=True)  if r2 > r3 goto pass
        code.let(R0, "=", 1)                         r0 = 1
        code.label("pass")
        code.assemble()

One method an instruction form, no optimisation, no register allocation: what stands in the source is what the verifier
complains about. R0 is the result, R1 the context at entry, R1 to R5 are arguments and lost over a call, R6 to R9 are
kept, FP is the frame pointer: a stack of 512 bytes below it. A jump counts the instructions that follow it; a label is
resolved when the code is complete. linux-bpf.h
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from vmq.abi import bpf
from vmq.abi.layout import offset

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)
BYTE, HALF, WORD, DOUBLE = 1, 2, 4, 8
_SIZES = {BYTE: bpf.BPF_B, HALF: bpf.BPF_H, WORD: bpf.BPF_W, DOUBLE: bpf.BPF_DW}


class HasDescriptor(Protocol):
    """A map, to an instruction."""

    @property
    def fd(self) -> int: ...


class _Instruction(NamedTuple):
    code: int
    to: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0
    target: str = ""  # the label that `offset` is to lead to


class Code:
    """A program that is being written."""

    def __init__(self) -> None:
        self._instructions: list[_Instruction] = []
        self._labels: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._instructions)

    def _add(
        self, code: int, to: int = 0, source: int = 0, offset: int = 0, immediate: int = 0, target: str = ""
    ) -> None:
        self._instructions.append(_Instruction(code, to, source, offset, immediate, target))

    def label(self, name: str) -> None:
        """Jumps to `name` lead here."""
        if name in self._labels:
            raise ValueError(f"label {name!r} is there twice")
        self._labels[name] = len(self._instructions)

    def let(self, to: int, operation: str, value: int, *, register: bool = False) -> None:
        """`to` operation value, as "=" or "+="; `register`: the value is that of a register. 64 bits wide."""
        code = bpf.BPF_ALU64 | bpf.BPF_OPERATIONS[operation]
        if register:
            self._add(code | bpf.BPF_X, to, value)
        else:
            self._add(code | bpf.BPF_K, to, 0, 0, value)

    def copy(self, to: int, source: int) -> None:
        """`to` = register `source`."""
        self.let(to, "=", source, register=True)

    def swap(self, to: int, bits: int) -> None:
        """The low bits of `to` from network byte order, or to it."""
        self._add(bpf.BPF_ALU | bpf.BPF_END | bpf.BPF_TO_BE, to, 0, 0, bits)

    def load(self, to: int, base: int, place: int, size: int) -> None:
        """`to` = `size` bytes at base + place."""
        self._add(bpf.BPF_LDX | bpf.BPF_MEM | _SIZES[size], to, base, place)

    def load_field(self, to: int, base: int, structure: np.dtype[Any], field: str) -> None:
        """`to` = a field of a structure at `base`."""
        self.load(to, base, offset(structure, field), structure[field].itemsize)

    def store(self, base: int, place: int, source: int, size: int) -> None:
        """`size` bytes at base + place = register `source`."""
        self._add(bpf.BPF_STX | bpf.BPF_MEM | _SIZES[size], base, source, place)

    def store_value(self, base: int, place: int, value: int, size: int) -> None:
        """`size` bytes at base + place = value."""
        self._add(bpf.BPF_ST | bpf.BPF_MEM | _SIZES[size], base, 0, place, value)

    def load_map(self, to: int, one: HasDescriptor) -> None:
        """`to` = a map, for a call. Two instructions long."""
        self._add(bpf.BPF_LD | bpf.BPF_IMM | bpf.BPF_DW, to, bpf.BPF_PSEUDO_MAP_FD, 0, one.fd)
        self._add(0)

    def jump(self, target: str) -> None:
        """Go on at a label."""
        self._add(bpf.BPF_JMP | bpf.BPF_JA, target=target)

    def jump_if(self, target: str, left: int, condition: str, right: int, *, register: bool = False) -> None:
        """Go on at a label if register `left` condition `right`, unsigned; `register`: `right` is one."""
        code = bpf.BPF_JMP | bpf.BPF_CONDITIONS[condition]
        if register:
            self._add(code | bpf.BPF_X, left, right, target=target)
        else:
            self._add(code | bpf.BPF_K, left, 0, 0, right, target=target)

    def call(self, helper: int) -> None:
        """R0 = a function of the kernel of R1 to R5, which it loses."""
        self._add(bpf.BPF_JMP | bpf.BPF_CALL, 0, 0, 0, helper)

    def exit(self) -> None:
        """End with R0."""
        self._add(bpf.BPF_JMP | bpf.BPF_EXIT)

    def assemble(self) -> bytes:
        """The program as the kernel takes it. The maps must be open still."""
        made = np.zeros(len(self._instructions), bpf.instruction)
        for index, one in enumerate(self._instructions):
            distance = one.offset
            if one.target:
                if one.target not in self._labels:
                    raise ValueError(f"there is no label {one.target!r}")
                distance = self._labels[one.target] - index - 1
            made[index] = (one.code, one.to | one.source << 4, distance, one.immediate)
        return made.tobytes()
