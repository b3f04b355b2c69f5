# SPDX-License-Identifier: Apache-2.0
"""Whether the bytes that a device shows to an XDP program are those of the wire: VLAN tags and checksums among them.

    a NIC             takes tags out, if it is not told to leave them in (`Tags`); its checksums are the sender's
    a veth, a TAP     whoever writes at its other end may leave both beside the frame, and nobody at this end can see that
    behind a driver   (generic mode) the same: the kernel keeps an unfinished checksum beside the frame
    on top of others  (bonds, bridges, VLANs) frames come behind the kernel's own untagging: never

So the operator vouches for the second and third (`prepared`).
"""

from __future__ import annotations

import contextlib
import socket

from vmq import ethtool
from vmq.config.records import Xdp
from vmq.errors import HostError
from vmq.uplink import link

STRAIGHT = ("", "veth", "tun")  # devices whose frames a program sees before the kernel has touched them
STRIPPING = ("rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")  # 802.1Q and 802.1ad
VETH = "There: ethtool -K PEER txvlan off tx-vlan-stag-hw-insert off tx off; here: prepared = true"
WRITER = "Set prepared = true if all checksums in them are whole, or kind to packet"


def check(where: str, config: Xdp, known: link.Link | None) -> None:
    """Refuse a device whose frames are not to be had as they came; `where` names the table."""
    kind, device = known.virtual if known else "", config.device
    if kind not in STRAIGHT:
        wrong = f"{device} is a {kind}: a program sees its frames without their VLAN tags"
        raise HostError(f"{where} device", wrong, "Name the NIC below it, or set kind to packet")
    if kind == "veth" and not config.prepared:
        wrong = f"{device} is a veth, whose other end may leave VLAN tags and checksums beside its frames"
        raise HostError(f"{where} prepared", wrong, VETH)
    if kind == "tun" and not config.prepared:
        wrong = f"{device} is a TAP: who writes its frames may leave checksums unfinished"
        raise HostError(f"{where} prepared", wrong, WRITER)


def check_generic(where: str, config: Xdp, why: str) -> None:
    """Refuse to run the program behind a driver, unless somebody vouches for its frames."""
    if not config.prepared:
        wrong = f"behind the driver of {config.device} checksums may stand beside the frames"
        raise HostError(f"{where} prepared", f"{wrong}; {why}" if why else wrong, WRITER)


class Tags:
    """Has a device leave VLAN tags in its frames, and in the end take out again which it did. `by`: in its namespace."""

    def __init__(self, index: int, by: socket.socket) -> None:
        self._index, self._by = index, by
        self._ours: list[str] = []

    def taken_out(self) -> list[str]:
        """The features by which it takes tags out at this moment; OSError if it is gone."""
        said = ethtool.describe(link.name_of(self._index, self._by), self._by)
        return [feature for feature in STRIPPING if said is not None and said.features.get(feature)]

    def leave_in(self) -> None:
        """HostError if it cannot be told to, OSError if it is gone. Whoever switches it back is overruled the next time."""
        for feature in self.taken_out():
            ethtool.switch(link.name_of(self._index, self._by), feature, on=False, by=self._by)
            if feature not in self._ours:
                self._ours.append(feature)

    def ours(self) -> bool:
        """Whether the device is other than it was."""
        return bool(self._ours)

    def put_back(self) -> None:
        """Leave the device as it was, whatever it is called now; with the device its settings went too."""
        while self._ours:
            feature = self._ours.pop()
            with contextlib.suppress(OSError, HostError):
                ethtool.switch(link.name_of(self._index, self._by), feature, on=True, by=self._by)
