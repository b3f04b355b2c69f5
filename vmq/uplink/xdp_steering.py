# SPDX-License-Identifier: Apache-2.0
"""The programs of an xdp uplink in the kernel: attached, told which addresses are VMs', counted, taken off.

    filters    (MAC | VLAN << 48) → SOCKET, a pair, or a NIC queue of its own     what the XDP program redirects
    addresses  MAC → anything                    what packet sockets take besides groups
    sockets    NIC queue → AF_XDP socket
    pairs      number of a VM port → near end of its pair (vmq/direct/)
    own        NIC queue → AF_XDP socket of the VM that the queue is for (vmq/direct/)
    verdicts   frames by verdict

The maps are empty when the program is attached, so every frame goes on to the kernel as before, and each becomes ours
one address at a time. A new address is added before an old one is taken out. Where more addresses are asked for than a
map holds, packet sockets take every frame that the kernel has, and the rest works as on a packet uplink.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping

from vmq.abi import bpf
from vmq.abi.ethernet import MAC_GROUP_BIT
from vmq.bpf.link import Link
from vmq.bpf.maps import Map, counters, device_map, hash_map, socket_map
from vmq.bpf.program import Program
from vmq.dataplane.state import MAX_VPORTS, VID_SHIFT
from vmq.uplink.xdp_program import SOCKET, VERDICTS, steering, watcher

FILTERS_MAX = 16384
KEY_BYTES, VALUE_BYTES = 8, 4
MODES = {"native": bpf.XDP_FLAGS_DRV_MODE, "generic": bpf.XDP_FLAGS_SKB_MODE}
# Another program is there, or the same hook is in use in the other mode: trying the other mode would not help.
OCCUPIED = (errno.EBUSY, errno.EEXIST)


class XdpSteering:
    """Programs and maps for a device with `queues` receive queues."""

    def __init__(self, queues: int, longest: int) -> None:
        self._open: list[Map | Program] = []
        self._link: Link | None = None
        self._followed: dict[int, int] = {}
        self._addresses: dict[int, int] = {}
        self.mode = ""
        try:
            self.filters = self._keep(hash_map("vmq_filters", FILTERS_MAX, KEY_BYTES, VALUE_BYTES))
            self.addresses = self._keep(hash_map("vmq_addresses", FILTERS_MAX, KEY_BYTES, VALUE_BYTES))
            self.sockets = self._keep(socket_map("vmq_sockets", queues))
            self.pairs = self._keep(device_map("vmq_pairs", MAX_VPORTS))
            self.own = self._keep(socket_map("vmq_own_sockets", queues))
            self.counted = self._keep(counters("vmq_verdicts", len(VERDICTS)))
            code = steering(self.filters, self.sockets, self.pairs, self.own, self.counted, longest)
            self.program = Program(bpf.BPF_PROG_TYPE_XDP, "vmq_steering", code)
            self._open.append(self.program)
            self.watcher = Program(bpf.BPF_PROG_TYPE_SOCKET_FILTER, "vmq_watcher", watcher(self.addresses))
            self._open.append(self.watcher)
        except BaseException:
            self.close()
            raise

    def _keep(self, one: Map) -> Map:
        self._open.append(one)
        return one

    def attach(self, index: int, mode: str) -> str:
        """Put the program on a device, in one mode or ("auto") the better one; why not in the better one, or nothing."""
        if mode != "auto":
            self._attach(index, mode)
            return ""
        try:
            self._attach(index, "native")
        except OSError as error:
            if error.errno in OCCUPIED:
                raise
            self._attach(index, "generic")
            return f"the driver takes no program: {error.strerror}"
        return ""

    def _attach(self, index: int, mode: str) -> None:
        self._link = Link(self.program, index, flags=MODES[mode])
        self.mode = mode

    def detach(self) -> None:
        """Take the program off the device: every frame goes on to the kernel again."""
        self.mode = ""
        if self._link is not None:
            self._link.close()
            self._link = None

    def serve(self, queue: int, descriptor: int) -> None:
        """Frames to VMs on this NIC queue go to this socket from now on."""
        self.sockets.update(queue.to_bytes(4, "little"), descriptor.to_bytes(4, "little"))

    def pair(self, number: int, index: int) -> None:
        """The near end of a VM port's pair, in the namespace that we are in; before a filter leads there."""
        self.pairs.update(number.to_bytes(4, "little"), index.to_bytes(4, "little"))

    def serve_own(self, queue: int, descriptor: int) -> None:
        """The VM whose filters lead to this NIC queue has this socket there."""
        self.own.update(queue.to_bytes(4, "little"), descriptor.to_bytes(4, "little"))

    def forget_own(self, queue: int) -> None:
        """It has none any more."""
        self.own.delete(queue.to_bytes(4, "little"))

    def follow(
        self,
        filters: Collection[tuple[int, int]],
        own: int = 0,
        direct: Mapping[tuple[int, int], int] | None = None,
    ) -> str:
        """These (address, VLAN id) are VMs', but `own` is the host's; those that are `direct` lead to what the value says.

        Why not all of them, or nothing.
        """
        led = direct or {}
        unicast = [(mac, vid) for mac, vid in filters if not mac & MAC_GROUP_BIT]
        steered = {mac | vid << VID_SHIFT: led.get((mac, vid), SOCKET) for mac, vid in unicast if mac != own}
        why = bring_about(self.addresses, self._addresses, {mac: SOCKET for mac, _ in unicast})
        return bring_about(self.filters, self._followed, steered) or why

    def verdicts(self) -> dict[str, int]:
        """How many frames met each verdict."""
        return {name: self.counted.total(index) for index, (name, _) in enumerate(VERDICTS)}

    def close(self) -> None:
        """Take the program off the device, and forget everything. It may be called again."""
        self.detach()
        while self._open:
            self._open.pop().close()


def bring_about(table: Map, now: dict[int, int], wanted: Mapping[int, int]) -> str:
    """Make the pairs of a map those that are wanted; why that failed, or nothing. `now` says what is there.

    Those that are there and lead elsewhere come first, as there is room for them in any case: what ought to lead a frame away from
    a VM's memory does so, however many others do not fit.
    """
    _add(table, now, {key: value for key, value in wanted.items() if key in now})
    why = _add(table, now, wanted)
    for key in now.keys() - wanted.keys():
        table.delete(key.to_bytes(KEY_BYTES, "little"))
        del now[key]
    return _add(table, now, wanted) if why else ""  # there is room now, perhaps


def _add(table: Map, now: dict[int, int], wanted: Mapping[int, int]) -> str:
    try:
        for key, value in wanted.items():
            if now.get(key) != value:
                table.update(key.to_bytes(KEY_BYTES, "little"), value.to_bytes(VALUE_BYTES, "little"))
                now[key] = value
    except OSError as error:
        return f"no more than {len(now)} addresses fit: {error.strerror}"
    return ""
