# SPDX-License-Identifier: Apache-2.0
"""Guest memory that the kernel pins for direct placement: what of a VM does not go with that, and memory that was torn meanwhile.

Common to the tiers that register it with an AF_XDP socket (pairs.py, nic_queues.py). Pages that a front-end gives back to the host are other
pages afterwards, and the kernel has the old ones: such memory is never registered again (vmq/direct/memory.py).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from vmq.direct.memory import GuestMemory, files_of
from vmq.engine.tier import uplink_of
from vmq.errors import ProtocolError
from vmq.uplink.xdp import XdpUplink

if TYPE_CHECKING:
    from vmq.engine.vm import Vm

TORN = "pages of its memory were given back to the host: a memory balloon, free page reporting, virtio-mem"
MTU_MAX = 1500 + 4  # what a chunk of the kernel has room for, and more than a guest's usual buffers


class Torn:
    """Memory of which pages were given back, by VM."""

    def __init__(self) -> None:
        self._files: dict[str, frozenset[tuple[int, int]]] = {}

    def add(self, vm: Vm, memory: GuestMemory) -> None:
        """Never again with these files."""
        self._files[vm.name] = memory.files

    def has(self, vm: Vm) -> bool:
        """Whether any of the memory that a VM has now is torn."""
        torn = self._files.get(vm.name)
        return torn is not None and bool(torn & files_of(vm.session.regions))

    def tidy(self, names: Collection[str]) -> None:
        """Forget those of VMs that are gone."""
        for name in self._files.keys() - set(names):
            del self._files[name]


def in_the_way(vm: Vm, torn: Torn) -> str:
    """What keeps the kernel from writing into a VM's buffers, in words; empty if nothing does."""
    uplink = uplink_of(vm)
    if not isinstance(uplink, XdpUplink) or not uplink.steers:
        return "its uplink steers nothing in the kernel: see its mode"
    if vm.config.overload != "drop-newest":
        return "frames that find no buffer are to wait, and the kernel lets none wait"
    if "unknown" in vm.config.accept:
        return "it takes frames to other addresses, which the NIC's program leaves to the host"
    if vm.mtu > MTU_MAX:
        return f"frames of its MTU of {vm.mtu} take more than one buffer"
    if vm.running != [0]:
        return "its first receive queue alone must run"
    return TORN if torn.has(vm) else ""


def take(vm: Vm, beside: int = 0) -> GuestMemory:
    """All memory of a VM in one piece, with so much of ours behind it; OSError if that cannot be had."""
    memory = GuestMemory(vm.session.regions, beside)
    try:
        vm.engine.segment.add_mapping(vm.number, memory.address, memory.size)
    except ProtocolError as error:
        memory.close()
        raise OSError(0, error.wrong) from error
    return memory


def give_back(vm: Vm, memory: GuestMemory) -> None:
    """Nobody looks there any more."""
    vm.engine.segment.drop_mapping(memory.address)
    memory.close()


def said(error: Exception) -> str:
    """What the host or the kernel says."""
    return getattr(error, "strerror", None) or str(error)
