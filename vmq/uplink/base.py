# SPDX-License-Identifier: Apache-2.0
"""What an uplink of any kind is to the engine.

An uplink is opened once, as one lane a worker: a row of integers that kernels read (dataplane/state.py). Memory that
a row points to and descriptors in it belong to the uplink. The engine closes it when no worker can still use a table
version that shows its lanes.

`follow` tells it which addresses have a receive filter in which VLAN. `status` is asked of the kernel each time. `tick` is called by
control now and then, for work that no worker may do (files). Nothing of this runs in the way of a frame.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from vmq.abi.ethernet import ETH_HLEN
from vmq.abi.netdevice import IFNAMSIZ
from vmq.config.records import Uplink as Record
from vmq.dataplane import state
from vmq.errors import ConfigError, HostError
from vmq.jit import address_of

MTU_DEFAULT = 1500
ALIGN = 64


class Uplink(ABC):
    """Where frames enter and leave the host."""

    kind: str

    def __init__(self, name: str, config: Record, worker_count: int) -> None:
        self.name = name
        self.mtu = config.mtu or MTU_DEFAULT
        self.lanes: list[Any] = []
        self._arrays: list[Any] = []
        for worker in range(worker_count):
            row = np.zeros(1, state.lane)[0]
            row["worker"], row["fd"] = worker, state.NONE
            self.lanes.append(row)
        self.reconfigure(config)

    def reconfigure(self, config: Record) -> None:
        """Take what may change while it is open: the lanes of the next version have it."""
        for row in self.lanes:
            row["forward_link_local"] = config.link_local == "forward"

    def place(self, key: str = "") -> str:
        """How errors name this uplink, or one of its keys."""
        return f"[uplink.{self.name}] {key}".rstrip()

    def memory(self, size: int) -> int:
        """Address of zeroed memory, on a cache line, that lives as long as the uplink."""
        array = np.zeros(size + ALIGN, np.uint8)
        self._arrays.append(array)
        return (address_of(array) + ALIGN - 1) & ~(ALIGN - 1)

    def set_mtu(self, mtu: int) -> None:
        """Frames of more than `mtu` bytes behind their Ethernet header do not come in."""
        self.mtu = mtu
        for row in self.lanes:
            row["frame_max"] = mtu + ETH_HLEN

    def descriptors(self) -> list[int | None]:
        """What to watch for input, lane by lane."""
        return [None if row["fd"] == state.NONE else int(row["fd"]) for row in self.lanes]

    def follow(self, filters: Collection[tuple[int, int]], everything: bool = False) -> None:  # noqa: B027 - most kinds need not ask
        """These (address, VLAN id) have a receive filter now. `everything`: somebody takes frames to any address."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """What it is at this moment, as the kernel tells."""

    def send(self, frame: bytes) -> None:  # noqa: B027 - a wire may have no end
        """Send one frame of our own, an announcement. A wire that takes none now loses it."""

    def begin(self, again: bool = False) -> None:  # noqa: B027 - most kinds have nothing to lose
        """Its configuration is in force, and it serves; `again` if it did until one that was refused closed it."""

    def tick(self) -> None:  # noqa: B027 - most kinds leave nothing
        """Work off what the workers left for control."""

    def discard(self) -> None:
        """It is not to serve after all: close it, and leave its device or file as it was for whoever has that."""
        self.close()

    def close(self) -> None:
        """Give everything back; it never fails, and may be called again."""
        for row in self.lanes:
            descriptor = int(row["fd"])
            row["fd"] = state.NONE
            if descriptor != state.NONE:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def setting(name: str, requested: Any, effective: Any, why: str = "") -> dict[str, Any]:
    """One setting of a status: what was asked for, what is, and why they differ."""
    return {"name": name, "requested": requested, "effective": effective, "why": why}


def check_device(where: str, device: str) -> None:
    """Refuse what no device can be called."""
    bad = any(char.isspace() or char in "/:%" or not char.isprintable() for char in device)
    if not device or bad or device in (".", "..") or len(os.fsencode(device)) >= IFNAMSIZ:
        raise ConfigError(
            where,
            f'"{device}" is no name of a network device',
            f"Use 1 to {IFNAMSIZ - 1} characters without spaces, slashes, colons and percent signs",
        )


@contextlib.contextmanager
def refusing(where: str, doing: str, remedies: dict[int, str], remedy: str) -> Iterator[None]:
    """Turn an OSError of the block into one line with the remedy of its errno, or the general one."""
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)
        raise HostError(where, f"{doing}: {words}", remedies.get(error.errno or 0, remedy)) from error
