# SPDX-License-Identifier: Apache-2.0
"""A program in the kernel: loaded and judged by the verifier, run on a frame of ours, closed.

The licence that is declared is the project's own. The kernel keeps some of its functions for programs under the GPL;
none of those that we call is among them (docs/adr/0010).
"""

from __future__ import annotations

import errno
from typing import NamedTuple

import numpy as np

from vmq import linux
from vmq.abi import bpf
from vmq.bpf.assembler import Code
from vmq.bpf.descriptor import Descriptor
from vmq.bpf.maps import attribute
from vmq.errors import VmqError

LOG_BYTES = 1 << 18
LOG_LINES = 12  # of the verifier's log that an error tells: the last ones have the reason
LICENSE = b"Apache-2.0\0"
FRAME_OUT = 1 << 16
_EXPECTED = {bpf.BPF_PROG_TYPE_XDP: bpf.BPF_XDP}


class VerifierError(VmqError):
    """The verifier refused a program of ours: our fault, and its log says which instruction."""

    def __init__(self, name: str, reason: str, log: str) -> None:
        self.log = log
        last = " / ".join(line for line in log.splitlines()[-LOG_LINES:] if line.strip())
        super().__init__(
            f"the kernel refuses the program {name}: {reason}: {last}", "Report it with this log"
        )


class Run(NamedTuple):
    """What a program made of a frame."""

    verdict: int
    frame: bytes
    ns: int  # a run, on average


class Program(Descriptor):
    """A loaded program."""

    def __init__(self, kind: int, name: str, code: Code) -> None:
        self.kind, self.name = kind, name
        instructions = np.frombuffer(code.assemble(), np.uint8)
        license_text = np.frombuffer(LICENSE, np.uint8)
        log = np.zeros(LOG_BYTES, np.uint8)
        asked = attribute(
            bpf.prog_load,
            prog_type=kind,
            insn_cnt=len(code),
            insns=instructions.ctypes.data,
            license=license_text.ctypes.data,
            log_level=1,
            log_size=LOG_BYTES,
            log_buf=log.ctypes.data,
            prog_name=name.encode()[: bpf.BPF_OBJ_NAME_LEN - 1],
            expected_attach_type=_EXPECTED.get(kind, 0),
        )
        try:
            self.fd = linux.bpf(bpf.BPF_PROG_LOAD, asked)
        except OSError as error:
            text = log.tobytes().rstrip(b"\0").decode(errors="replace")
            if not text or error.errno == errno.EPERM:
                raise
            raise VerifierError(name, error.strerror or str(error), text) from error

    def run(self, frame: bytes, repeat: int = 1) -> Run:
        """Run it on a frame, `repeat` times; nothing is sent anywhere, and redirection is told by the verdict only."""
        given, out = np.frombuffer(frame, np.uint8), np.zeros(FRAME_OUT, np.uint8)
        asked = attribute(
            bpf.test_run,
            prog_fd=self.fd,
            data_size_in=len(frame),
            data_size_out=FRAME_OUT,
            data_in=given.ctypes.data,
            data_out=out.ctypes.data,
            repeat=repeat,
        )
        linux.bpf(bpf.BPF_PROG_TEST_RUN, asked)
        told = np.frombuffer(asked, bpf.test_run)[0]
        return Run(int(told["retval"]), out[: int(told["data_size_out"])].tobytes(), int(told["duration"]))
