# SPDX-License-Identifier: Apache-2.0
"""What no table of a file can judge alone: clashes between tables, names that lead nowhere, paths too long.

    judge ─┬─ engine    its processors exist
           ├─ uplinks   processors exist, no device twice, captures readable and written once
           ├─ VMs       uplink and processor exist, and allow each other
           ├─ sockets   short enough, no path twice, QEMU's and the API's included
           └─ filters   no (uplink, VLAN, MAC) of two VMs: the frame would have two owners

Each rule names the later of two tables that clash, and both in words. A table with an error of its own has no
record and is not judged; that it exists still counts, so that one mistake is reported once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from vmq.config.forms import cpu_text, shown
from vmq.config.records import SOCKET_PATH_MAX, Config, Packet, Pcap, Tap, Xdp
from vmq.errors import ConfigError, ConfigErrors, HostError


class Complaints:
    """All that is wrong in one file, in the order found."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.errors: list[ConfigError] = []

    def add(self, place: str, wrong: str, remedy: str, *, error: type[ConfigError] = ConfigError) -> None:
        self.errors.append(error(f"{self.where}: {place}" if place else self.where, wrong, remedy))

    def error(self) -> ConfigErrors:
        return ConfigErrors(self.errors)

    def __len__(self) -> int:
        return len(self.errors)


def judge(
    config: Config, complaints: Complaints, *, named: Collection[str], available: Collection[int] | None
) -> None:
    """Add what is wrong with the records together. `named`: the uplinks that the file has a table for.

    `available`: the processors there are; None leaves them unjudged.
    """
    _processors(config, complaints, available)
    _devices(config, complaints)
    _captures(config, complaints)
    for name, vm in config.vms.items():
        if vm.uplink is not None and vm.uplink not in named:
            others = ", ".join(named) or "no uplink yet"
            complaints.add(
                f"[vm.{name}] uplink",
                f"there is no [uplink.{vm.uplink}]",
                f"Add that table, or name one of the file: {others}",
            )
        if vm.qmp_nic is not None and vm.qmp is None:
            complaints.add(f"[vm.{name}] qmp_nic", "says nothing without qmp", "Set qmp too, or remove it")
    _nic_queues(config, complaints)
    _sockets(config, complaints)
    _filters(config, complaints)


def _nic_queues(config: Config, complaints: Complaints) -> None:
    owner: dict[tuple[str | None, int], str] = {}
    for name, vm in config.vms.items():
        if vm.nic_queue is None:
            continue
        place, uplink = f"[vm.{name}] nic_queue", config.uplinks.get(vm.uplink or "")
        first = owner.setdefault((vm.uplink, vm.nic_queue), name)
        if not isinstance(uplink, Xdp):
            complaints.add(place, "its uplink is not of kind xdp", "Choose such an uplink, or remove it")
        elif first != name:
            complaints.add(
                place,
                f"queue {vm.nic_queue} of [uplink.{vm.uplink}] belongs to [vm.{first}] already",
                "Give each VM a queue of its own",
            )


def _processors(config: Config, complaints: Complaints, available: Collection[int] | None) -> None:
    ours = config.engine.processors
    _exist("[engine] processors", ours or (), complaints, available)
    for name, one in config.uplinks.items():
        place, asked = f"[uplink.{name}] processors", one.processors or ()
        if _exist(place, asked, complaints, available) and ours is not None:
            _among(place, asked, ours, "the engine's", "[engine]", complaints)
    for name, vm in config.vms.items():
        if vm.processor is None:
            continue
        place, asked = f"[vm.{name}] processor", (vm.processor,)
        uplink = config.uplinks.get(vm.uplink or "")
        if not _exist(place, asked, complaints, available):
            continue
        if ours is not None and vm.processor not in ours:
            _among(place, asked, ours, "the engine's", "[engine]", complaints)
        elif uplink is not None and uplink.processors is not None:
            table = f"[uplink.{vm.uplink}]"
            _among(place, asked, uplink.processors, f"those of {table}", table, complaints)


def _exist(
    place: str, asked: Sequence[int], complaints: Complaints, available: Collection[int] | None
) -> bool:
    """Whether this process may use them."""
    missing = [cpu for cpu in asked if available is not None and cpu not in available]
    if missing and available is not None:
        complaints.add(
            place,
            f"there is no processor {cpu_text(missing)}: this process may use {cpu_text(available)}",
            "Name processors that exist",
            error=HostError,
        )
    return not missing


def _among(
    place: str, asked: Sequence[int], ours: Sequence[int], whose: str, table: str, complaints: Complaints
) -> None:
    """Complain of those that the table above does not have."""
    foreign = [cpu for cpu in asked if cpu not in ours]
    if foreign:
        complaints.add(
            place,
            f"{cpu_text(foreign)} is not one of {whose}, {cpu_text(ours)}",
            f"Add it to processors of {table}, or name one of those",
        )


def _devices(config: Config, complaints: Complaints) -> None:
    owner: dict[str, str] = {}
    for name, uplink in config.uplinks.items():
        if not isinstance(uplink, Tap | Packet):
            continue
        first = owner.setdefault(uplink.device, name)
        if first != name:
            complaints.add(
                f"[uplink.{name}] device",
                f"{shown(uplink.device)} is the device of [uplink.{first}] already",
                "Give each uplink its own device",
            )
        if isinstance(uplink, Tap) and uplink.bridge == uplink.device:
            complaints.add(
                f"[uplink.{name}] bridge", "the device itself", "Name the bridge that the device joins"
            )


def _captures(config: Config, complaints: Complaints) -> None:
    files: dict[str, str] = {}
    captures = {name: uplink for name, uplink in config.uplinks.items() if isinstance(uplink, Pcap)}
    for name, uplink in captures.items():
        if uplink.read is not None:
            files.setdefault(uplink.read, f"read of [uplink.{name}]")
            try:
                with Path(uplink.read).open("rb") as capture:
                    capture.read(1)
            except OSError as error:
                complaints.add(
                    f"[uplink.{name}] read",
                    f"{shown(uplink.read)} cannot be read: {error.strerror}",
                    "Give the path of a readable capture",
                    error=HostError,
                )
        elif uplink.write is None:
            complaints.add(f"[uplink.{name}]", "neither read nor write is set", "Set read, write or both")
    for name, uplink in captures.items():
        here = f"write of [uplink.{name}]"
        if uplink.write is not None and files.setdefault(uplink.write, here) != here:
            complaints.add(
                f"[uplink.{name}] write",
                f"{shown(uplink.write)} is {files[uplink.write]} already",
                "Write to a file of its own",
            )


def _sockets(config: Config, complaints: Complaints) -> None:
    owner: dict[str, str] = {}
    for place, path in _socket_paths(config):
        size = len(os.fsencode(path))
        if size > SOCKET_PATH_MAX:
            complaints.add(
                place,
                f"{shown(path)} has {size} bytes, and the path of a socket at most {SOCKET_PATH_MAX}",
                "Choose a shorter path",
            )
        first = owner.setdefault(path, place)
        if first != place:
            complaints.add(place, f"{shown(path)} is {first} already", "Give each socket its own path")


def _socket_paths(config: Config) -> Iterator[tuple[str, str]]:
    yield "[engine] api", config.engine.api
    for name, vm in config.vms.items():
        yield f"[vm.{name}] socket", vm.socket
        if vm.qmp is not None:  # it serves one client: two VM ports of one QEMU need two of them
            yield f"[vm.{name}] qmp", vm.qmp


def _filters(config: Config, complaints: Complaints) -> None:
    owner: dict[tuple[str | None, int | None, str], str] = {}
    for name, vm in config.vms.items():
        for mac in vm.mac:
            first = owner.setdefault((vm.uplink, vm.vlan, mac), name)
            if first != name:
                segment = "without a VLAN" if vm.vlan is None else f"of VLAN {vm.vlan}"
                complaints.add(
                    f"[vm.{name}] mac",
                    f"{shown(mac)} {segment} belongs to [vm.{first}] already",
                    "Give one of the two another address, VLAN or uplink",
                )
