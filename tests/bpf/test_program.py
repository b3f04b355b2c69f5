# SPDX-License-Identifier: Apache-2.0
"""Programs in the running kernel: loaded, judged, run on frames of ours."""

from __future__ import annotations

import os

import pytest

from vmq.abi import bpf
from vmq.bpf.assembler import BYTE, FP, R0, R1, R2, R3, R4, WORD, Code
from vmq.bpf.maps import counters
from vmq.bpf.program import Program, VerifierError

pytestmark = pytest.mark.root


def returning(value: int) -> Code:
    code = Code()
    code.let(R0, "=", value)
    code.exit()
    return code


def first_byte() -> Code:
    """The first byte of a frame as the verdict."""
    code = Code()
    code.load_field(R2, R1, bpf.xdp_md, "data")
    code.load_field(R3, R1, bpf.xdp_md, "data_end")
    code.copy(R4, R2)
    code.let(R4, "+=", 1)
    code.let(R0, "=", bpf.XDP_ABORTED)
    code.jump_if("end", R4, ">", R3, register=True)
    code.load(R0, R2, 0, BYTE)
    code.label("end")
    code.exit()
    return code


def test_a_program_says_what_it_makes_of_a_frame():
    with Program(bpf.BPF_PROG_TYPE_XDP, "test", first_byte()) as program:
        frame = b"\x03" + bytes(59)
        told = program.run(frame)
        assert (told.verdict, told.frame) == (bpf.XDP_TX, frame)
        assert program.run(b"\x02" + bytes(13), repeat=100).verdict == bpf.XDP_PASS


def test_a_program_counts_in_a_map_that_outlives_our_descriptor_of_it():
    table = counters("test", 1)
    code = Code()
    code.store_value(FP, -4, 0, WORD)
    code.copy(R2, FP)
    code.let(R2, "+=", -4)
    code.load_map(R1, table)
    code.call(bpf.BPF_FUNC_map_lookup_elem)
    code.jump_if("end", R0, "==", 0)
    code.store_value(R0, 0, 5, WORD)
    code.label("end")
    code.let(R0, "=", bpf.XDP_PASS)
    code.exit()
    with table, Program(bpf.BPF_PROG_TYPE_XDP, "test", code) as program:
        program.run(bytes(60))
        assert table.total(0) == 5
        table.close()
        assert program.run(bytes(60)).verdict == bpf.XDP_PASS


@pytest.mark.parametrize("kind", [bpf.BPF_PROG_TYPE_SOCKET_FILTER, bpf.BPF_PROG_TYPE_SCHED_CLS])
def test_other_kinds_load_too(kind: int):
    with Program(kind, "test", returning(0)) as program:
        assert program.run(bytes(60)).verdict == 0


def test_what_the_verifier_says_is_in_the_error():
    """A read without a bounds check; and an instruction that nothing leads to."""
    unbounded = Code()
    unbounded.load_field(R2, R1, bpf.xdp_md, "data")
    unbounded.load(R0, R2, 0, BYTE)
    unbounded.exit()
    dead = returning(2)
    dead.exit()
    for code, reason in ((unbounded, "invalid access to packet"), (dead, "unreachable insn")):
        with pytest.raises(VerifierError, match=f"refuses the program test: .*{reason}") as caught:
            Program(bpf.BPF_PROG_TYPE_XDP, "test", code)
        assert reason in caught.value.log
        assert len(str(caught.value).splitlines()) == 1


def test_closing_gives_the_descriptor_back_and_may_be_repeated():
    before = os.listdir("/proc/self/fd")
    program = Program(bpf.BPF_PROG_TYPE_XDP, "test", returning(2))
    program.close()
    program.close()
    assert os.listdir("/proc/self/fd") == before
