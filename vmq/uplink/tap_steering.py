# SPDX-License-Identifier: Apache-2.0
"""The program of a TAP with queues of VMs' own: it names the queue of each frame that the host sends into the device.

    (MAC, VLAN) of a VM that has a queue ──► that queue         an entry of the map, and its value
    anything else                        ──► one of the `ordinary` queues, the lanes of the workers, by its flow

The kernel asks it before it keeps the frame (TUNSETSTEERINGEBPF), and takes the answer modulo the number of queues. The
lookup is the engine's own, as in xdp_program.py, but that the kernel may have taken an 802.1Q tag out of the frame:
then it stands beside it, and is put back when the frame is read. A tag of another kind is payload, wherever it stands.

A queue has the number of queues that there were when it was opened; one that is closed gives its number to the last one. So
queues of VMs stay open as long as the uplink, and are given to other VMs. linux-if_tun.h
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Mapping

from vmq.abi import bpf
from vmq.abi.ethernet import (
    ETH_HLEN,
    ETH_TYPE_OFFSET,
    MAC_GROUP_BIT,
    TPID_8021Q_LE,
    VLAN_HLEN,
    VLAN_VID_MASK,
)
from vmq.abi.inet import ETH_P_IP, ETH_P_IPV6
from vmq.abi.linux import TUNSETSTEERINGEBPF
from vmq.bpf.assembler import BYTE, DOUBLE, FP, HALF, R0, R1, R2, R3, R4, R5, R6, R7, R9, WORD, Code
from vmq.bpf.maps import Map, counters, hash_map
from vmq.bpf.program import Program
from vmq.dataplane.offload import IPV4_ADDRESSES, IPV6_ADDRESSES
from vmq.dataplane.state import VID_SHIFT
from vmq.uplink.xdp_program import KEY, count, look_up
from vmq.uplink.xdp_steering import FILTERS_MAX, KEY_BYTES, VALUE_BYTES, bring_about

# (name, where the frame went and why), in the order of the counters.
VERDICTS: tuple[tuple[str, str], ...] = (
    ("own_queue", "the address of a VM that has a queue of its own: into that"),
    ("ordinary", "anything else: to one of the processors"),
)
OWN_QUEUE, ORDINARY = range(len(VERDICTS))
# Places on the stack: of IPv4 the two addresses, of IPv6 the half of the sender's that differs; the first bytes of the frame, and
# what follows an EtherType that is a tag's.
ADDRESSES, HEAD = -24, -48
FOLD, LOW_BITS = 1_640_531_527, 16  # a product spreads what differs in few bits; the lowest are left out
NO_PROGRAM = (-1).to_bytes(4, "little", signed=True)


def choosing(filters: Map, counted: Map, ordinary: int) -> Code:
    """The program, a socket filter: its result is the number of a queue."""
    code = Code()
    code.copy(R6, R1)
    for place in (HEAD, HEAD + 8):
        code.store_value(FP, place, 0, DOUBLE)
    _load(code, 0, ETH_HLEN, HEAD, "ordinary")
    code.load(R1, FP, HEAD, BYTE)
    code.jump_if("ordinary", R1, "&", MAC_GROUP_BIT)
    code.load(R9, FP, HEAD + 4, HALF)
    code.let(R9, "<<=", 32)
    code.load(R1, FP, HEAD, WORD)
    code.let(R9, "|=", R1, register=True)
    _add_vlan(code)
    code.store(FP, KEY, R9, DOUBLE)
    look_up(code, filters, KEY, "ordinary")
    code.load(R6, R0, 0, WORD)
    code.let(R1, "=", OWN_QUEUE)
    code.jump("count")
    code.label("ordinary")
    _spread(code, ordinary)
    code.let(R1, "=", ORDINARY)
    count(code, counted)
    return code


def _spread(code: Code, ordinary: int) -> None:
    """R6 = one of so many queues: by the hash that the kernel has of the flow, or without one by the addresses."""
    code.load_field(R7, R6, bpf.sk_buff, "hash")
    code.jump_if("spread", R7, "!=", 0)
    for place in (HEAD, HEAD + 4, HEAD + 8):
        code.load(R1, FP, place, WORD)
        code.let(R7, "^=", R1, register=True)
    code.load(R1, FP, HEAD + ETH_TYPE_OFFSET, HALF)
    code.jump_if("ipv4", R1, "==", _as_loaded(ETH_P_IP))
    code.jump_if("fold", R1, "!=", _as_loaded(ETH_P_IPV6))
    _load(code, ETH_HLEN + IPV6_ADDRESSES + 8, 8, ADDRESSES, "fold")
    code.jump("addresses")
    code.label("ipv4")
    _load(code, ETH_HLEN + IPV4_ADDRESSES, 8, ADDRESSES, "fold")
    code.label("addresses")
    for place in (ADDRESSES, ADDRESSES + 4):
        code.load(R1, FP, place, WORD)
        code.let(R7, "^=", R1, register=True)
    code.label("fold")
    code.let(R7, "*=", FOLD)
    code.let(R7, ">>=", LOW_BITS)
    code.label("spread")
    code.let(R7, "%=", ordinary)
    code.copy(R6, R7)


def _as_loaded(kind: int) -> int:
    """An EtherType as a load of two bytes sees it."""
    return int.from_bytes(kind.to_bytes(2, "big"), "little")


def _load(code: Code, first: int, length: int, place: int, otherwise: str) -> None:
    """Bytes of the frame onto the stack; one that ends before them goes on elsewhere."""
    code.copy(R1, R6)
    code.let(R2, "=", first)
    code.copy(R3, FP)
    code.let(R3, "+=", place)
    code.let(R4, "=", length)
    code.let(R5, "=", bpf.BPF_HDR_START_MAC)
    code.call(bpf.BPF_FUNC_skb_load_bytes_relative)
    code.jump_if(otherwise, R0, "!=", 0)


def _add_vlan(code: Code) -> None:
    """The VLAN of the outer tag above the address in R9, wherever that tag stands."""
    code.load_field(R1, R6, bpf.sk_buff, "vlan_present")
    code.jump_if("inside", R1, "==", 0)
    code.load_field(R1, R6, bpf.sk_buff, "vlan_proto")
    code.jump_if("untagged", R1, "!=", TPID_8021Q_LE)
    code.load_field(R7, R6, bpf.sk_buff, "vlan_tci")
    code.jump("tagged")
    code.label("inside")
    code.load(R1, FP, HEAD + ETH_TYPE_OFFSET, HALF)
    code.jump_if("untagged", R1, "!=", TPID_8021Q_LE)
    _load(code, ETH_HLEN, VLAN_HLEN, HEAD + ETH_HLEN, "ordinary")
    code.load(R7, FP, HEAD + ETH_HLEN, HALF)
    code.swap(R7, 16)
    code.label("tagged")
    code.let(R7, "&=", VLAN_VID_MASK)
    code.let(R7, "<<=", VID_SHIFT)
    code.let(R9, "|=", R7, register=True)
    code.label("untagged")


class TapSteering:
    """Program and maps for a device whose first `ordinary` queues are the workers'."""

    def __init__(self, ordinary: int) -> None:
        self._followed: dict[int, int] = {}
        with contextlib.ExitStack() as made:
            self._filters = made.enter_context(
                hash_map("vmq_own_queues", FILTERS_MAX, KEY_BYTES, VALUE_BYTES)
            )
            self._counted = made.enter_context(counters("vmq_verdicts", len(VERDICTS)))
            code = choosing(self._filters, self._counted, ordinary)
            self.program = made.enter_context(Program(bpf.BPF_PROG_TYPE_SOCKET_FILTER, "vmq_choosing", code))
            self._made = made.pop_all()

    def attach(self, descriptor: int) -> None:
        """Have the device of a queue ask this program."""
        fcntl.ioctl(descriptor, TUNSETSTEERINGEBPF, self.program.fd.to_bytes(4, "little"))

    @staticmethod
    def detach(descriptor: int) -> None:
        """Let the kernel choose by flow again, in a device that stays."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, TUNSETSTEERINGEBPF, NO_PROGRAM)

    def follow(self, queues: Mapping[tuple[int, int], int]) -> None:
        """These (address, VLAN id) have queues of these numbers; OSError if they are too many."""
        wanted = {mac | vid << VID_SHIFT: queue for (mac, vid), queue in queues.items()}
        if why := bring_about(self._filters, self._followed, wanted):
            raise OSError(0, why)

    def verdicts(self) -> dict[str, int]:
        """How many frames met each verdict."""
        return {name: self._counted.total(index) for index, (name, _) in enumerate(VERDICTS)}

    def close(self) -> None:
        """Forget everything. It may be called again."""
        self._made.close()
