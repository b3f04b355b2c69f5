# SPDX-License-Identifier: Apache-2.0
"""What TAPs and packet sockets share: a device of the host, which is somebody's before and after us.

Its MTU is set, and it is brought up, when the uplink is opened: what the device does not take has to be found before
anybody is disturbed. Should the uplink not serve after all, because it or something else is refused, the device gets back what
it was found with. One that has served keeps what it has: its MTU is the administrator's, said in our file.
"""

from __future__ import annotations

import contextlib

from vmq.config.records import Packet, Tap
from vmq.uplink import link
from vmq.uplink.base import Uplink, check_device, refusing


class DeviceUplink(Uplink):
    """Lanes on one device."""

    config: Tap | Packet

    def __init__(self, name: str, config: Tap | Packet, worker_count: int) -> None:
        super().__init__(name, config, worker_count)
        self.config = config
        self.index = 0
        self._found: link.Link | None = None  # what the device was before anything of it was set
        check_device(self.place("device"), config.device)

    def _fit(self, found: link.Link) -> None:
        """Give the device, which is as `found`, the MTU of the configuration; without one, it keeps its own."""
        self._found = found
        wanted = self.config.mtu
        if wanted is not None:
            refused = f"{self.config.device} does not take {wanted}"
            with refusing(self.place("mtu"), refused, {}, "Choose a smaller MTU"):
                link.set_mtu(self.config.device, wanted)
        self.set_mtu(wanted or found.mtu)

    def discard(self) -> None:
        found, self._found = self._found, None
        if found is not None:
            if self.config.mtu is not None:
                with contextlib.suppress(OSError):
                    link.set_mtu(found.name, found.mtu)
            if not found.up:
                with contextlib.suppress(OSError):
                    link.set_down(found.name)
        super().discard()
