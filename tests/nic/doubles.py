# SPDX-License-Identifier: Apache-2.0
"""Devices that need no kernel: one that can everything, one that can nothing. Both remember what was done to them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, NoReturn

from vmq.errors import HostError
from vmq.ethtool import Driver
from vmq.nic.device import Nic
from vmq.uplink.link import Link


def told(**changes: Any) -> Link:
    """A NIC as the kernel describes it."""
    values: dict[str, Any] = {
        "index": 7, "name": "eth1", "kind": 1, "mtu": 1500, "up": True, "state": "up", "master": 0, "promiscuity": 0, "mac": 1
    }  # fmt: skip
    return Link(**{**values, **changes})


def refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Able(Nic):
    """It can everything; `on` is what is on it at this moment, `log` what was done."""

    def __init__(self, queue: int = 0, **changes: Any) -> None:
        self.name, self.index, self.queue = "eth1", 7, queue
        self.on: list[str] = []
        self.log: list[str] = []
        self.said: Link | None = told(**changes)
        self.routes: list[str] = []
        self.missing: list[str] = []
        self.limit: int | None = None

    @contextlib.contextmanager
    def _with(self, what: str) -> Iterator[None]:
        self.on.append(what)
        self.log.append(what)
        try:
            yield
        finally:
            self.on.remove(what)

    def link(self) -> Link | None:
        return self.said

    def driver(self) -> Driver | None:
        return Driver("igc", "6.12", "2023:889d-8", {}, "0000:01:00.0")

    def queues(self) -> tuple[int, int]:
        return 4, 4

    def abilities(self) -> frozenset[str] | None:
        return frozenset({"basic", "redirect", "ndo-xmit", "xsk-zerocopy"})

    def interrupts(self) -> dict[int, tuple[int, ...]]:
        return {125: (0,), 126: (1, 2, 3)}

    def default_routes(self) -> list[str]:
        return self.routes

    def standing(self) -> dict[str, Any]:
        return {"programs": list(self.on), "MTU": 1500}

    def lacks(self) -> list[str]:
        return self.missing

    def may_pin(self) -> int | None:
        return self.limit

    def huge_pages(self) -> int:
        return 8

    def iommu(self) -> tuple[bool, str, str]:
        return True, "12", "DMA-FQ"

    @contextlib.contextmanager
    def passing(self, mode: str) -> Iterator[None]:
        with self._with(mode):
            yield

    def bind(self, mode: str, *, zero_copy: bool, chunk: int, huge: bool = False) -> bool:
        with self.passing(mode), self._with(f"bind zero_copy={zero_copy:d} chunk={chunk} huge={huge:d}"):
            return zero_copy

    def leave_tags_in(self) -> list[str]:
        return ["rx-vlan-hw-parse"]

    @contextlib.contextmanager
    def choosing(self) -> Iterator[bool]:
        with self._with("ntuple"):
            yield False

    def rules(self) -> int:
        return 0

    def try_rule(self, mac: int) -> tuple[int, tuple[int, int]]:
        with self._with("rule"):
            return 15, (mac, self.queue)


class Unable(Able):
    """It has a link, and refuses everything."""

    def driver(self) -> Driver | None:
        return None

    def queues(self) -> tuple[int, int]:
        return 1, 1

    def abilities(self) -> frozenset[str] | None:
        return frozenset()

    def interrupts(self) -> dict[int, tuple[int, ...]]:
        return {}

    def huge_pages(self) -> int:
        return 0

    def iommu(self) -> tuple[bool, str, str]:
        return False, "", ""

    def passing(self, mode: str) -> NoReturn:
        self.log.append(mode)
        raise refused(errno.EOPNOTSUPP)

    def leave_tags_in(self) -> list[str]:
        raise HostError("ethtool -K eth1 rx-vlan-hw-parse", "the driver did not switch it off", "See it")

    def choosing(self) -> NoReturn:
        raise HostError("ethtool -K eth1 rx-ntuple-filter", "the driver did not switch it on", "See it")
