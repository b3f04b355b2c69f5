# SPDX-License-Identifier: Apache-2.0
"""A NIC that chooses its receive queue by destination: a veth, whose other end has a program that says the queue.

sender ─► host0 (tcx egress: map address → queue) ─► nic0: rx queue q        as n-tuple rules of a NIC do
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Self

from tests.vm.lab.netns import Namespace
from vmq.abi import bpf
from vmq.abi.layout import offset
from vmq.bpf.assembler import DOUBLE, FP, R0, R1, R2, R3, R4, R5, R6, WORD, Code
from vmq.bpf.link import Link
from vmq.bpf.maps import Map, hash_map
from vmq.bpf.program import Program
from vmq.direct.memory import GuestMemory
from vmq.direct.nic_socket import BESIDE, NicSocket
from vmq.uplink.xdp_program import look_up

QUEUES = 4
KEY = -8
QUEUE_MAPPING = offset(bpf.sk_buff, "queue_mapping")


def queue_by_address(rules: Map, otherwise: int) -> Code:
    """What a rule says, or without one `otherwise`. The kernel reads the field as one more than the queue."""
    code = Code()
    code.copy(R6, R1)
    code.store_value(FP, KEY, 0, DOUBLE)
    code.let(R2, "=", 0)
    code.copy(R3, FP)
    code.let(R3, "+=", KEY)
    code.let(R4, "=", 6)
    code.let(R5, "=", bpf.BPF_HDR_START_MAC)
    code.call(bpf.BPF_FUNC_skb_load_bytes_relative)
    code.let(R1, "=", otherwise + 1)
    code.jump_if("set", R0, "!=", 0)
    look_up(code, rules, KEY, "none")
    code.load(R1, R0, 0, WORD)
    code.let(R1, "+=", 1)
    code.jump("set")
    code.label("none")
    code.let(R1, "=", otherwise + 1)
    code.label("set")
    code.store(R6, QUEUE_MAPPING, R1, WORD)
    code.let(R0, "=", bpf.TCX_NEXT)
    code.exit()
    return code


class Nic:
    """`device` in `host`, with QUEUES receive queues; `send` is the wire. Frames without a rule come by queue `otherwise`."""

    def __init__(
        self,
        host: Namespace,
        sender: Namespace,
        *,
        device: str = "nic0",
        wire: str = "host0",
        otherwise: int = 0,
    ) -> None:
        self.host, self.device = host, device
        queues = ["numtxqueues", str(QUEUES), "numrxqueues", str(QUEUES)]
        sender.run("ip", "link", "add", wire, *queues, "type", "veth", "peer", "name", device, *queues, "netns", host.name)  # fmt: skip
        sender.up(wire)
        host.up(device)
        self._stack = contextlib.ExitStack()
        self.rules = self._stack.enter_context(hash_map("rules", 64, 8, 4))
        program = Program(bpf.BPF_PROG_TYPE_SCHED_CLS, "queues", queue_by_address(self.rules, otherwise))
        self._stack.enter_context(program)
        index = sender.call(lambda: socket.if_nametoindex(wire))
        self._stack.enter_context(sender.call(lambda: Link(program, index, bpf.BPF_TCX_EGRESS)))
        self.index = host.call(lambda: socket.if_nametoindex(device))
        self.wire = self._stack.enter_context(sender.call(lambda: self._station(wire)))

    @staticmethod
    def _station(wire: str) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((wire, 3))
        return made

    def rule(self, mac: int, queue: int) -> None:
        """Frames to this address come by this queue."""
        self.rules.update(mac.to_bytes(8, "little"), queue.to_bytes(4, "little"))

    def no_rule(self, mac: int) -> None:
        self.rules.delete(mac.to_bytes(8, "little"))

    @contextlib.contextmanager
    def busy(self, queue: int) -> Iterator[None]:
        """Somebody else has an AF_XDP socket on a queue."""
        memory = GuestMemory([], BESIDE)
        with contextlib.closing(memory):
            one = self.host.call(lambda: NicSocket(self.index, queue, memory, 1514))
            try:
                yield
            finally:
                one.close()

    def send(self, *frames: bytes) -> None:
        for one in frames:
            self.wire.send(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
