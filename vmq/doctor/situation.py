# SPDX-License-Identifier: Apache-2.0
"""What a rule looks at: the host, a configuration, and what a running engine tells. Any of the three may be missing.

    facts    the host (facts.py), and machines: QEMU processes of it, libvirt domains that were named
    config   what was asked for
    shown    the engine's rows, by view, as `vmq show VIEW --json` prints them: what is in effect

VM ports, uplinks and processors come from the configuration, or from the engine's rows if there is none; a port or
uplink that runs has its row beside it. A rule reads rows with `.get`: an engine of another version may lack a field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vmq.config import Config, Doctor
from vmq.doctor.facts import Facts, Link
from vmq.doctor.finding import Outcome
from vmq.doctor.machines import Machine, Nic
from vmq.errors import ConfigError
from vmq.placement import Plan, plan

Row = Mapping[str, Any]
VIEWS = ("vms", "queues", "uplinks", "processors", "misses", "configuration")
MTU_DEFAULT = 1500  # of an uplink that says none


@dataclass(frozen=True)
class PortView:
    """One VM port, as configured or as it runs."""

    name: str
    socket: str
    mode: str
    uplink: str | None
    macs: tuple[str, ...]
    vlan: int | None
    queue_pairs: int
    processor: int | None
    mtu: int | None  # None: the uplink's
    weight: int = 100  # 0: never a receive queue of its own
    row: Row = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"VM {self.name}"

    @property
    def segment(self) -> tuple[str | None, int | None]:
        return self.uplink, self.vlan


@dataclass(frozen=True)
class UplinkView:
    """One uplink. `link` is its network device on the host, if it has one and that exists."""

    name: str
    kind: str
    device: str | None
    bridge: str | None
    mtu: int | None
    promiscuous: bool
    processors: tuple[int, ...] | None = None  # that may serve its VMs; None: all of the engine's
    queues: int | None = None  # VMs that may have a receive queue of their own; None: all
    link: Link | None = None
    row: Row = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"uplink {self.name}"

    @property
    def mtu_in_effect(self) -> int | None:
        """The configuration's, else what the engine or the host says; of a NIC that is not there nobody knows."""
        known = self.mtu or self.row.get("mtu") or (self.link.mtu if self.link else None)
        return known or (None if self.kind in ("packet", "xdp") else MTU_DEFAULT)


@dataclass(frozen=True)
class Attached:
    """A guest's network device that belongs to a VM port: same socket, or else same address."""

    port: PortView
    machine: Machine
    nic: Nic
    by_socket: bool


@dataclass(frozen=True)
class Situation:
    """Everything that rules look at."""

    facts: Facts = field(default_factory=Facts)
    config: Config | None = None
    shown: Mapping[str, Sequence[Row]] | None = None
    domains: tuple[Machine, ...] = ()
    where: str = "vmq.toml"  # names the configuration in evidence
    in_force: bool = False  # `config` is what the engine has taken, whatever the file says by now

    @property
    def limits(self) -> Doctor:
        """From where on something is a mistake: as configured, else the defaults."""
        return self.config.doctor if self.config else Doctor()

    def rows(self, view: str) -> Sequence[Row] | None:
        """The engine's rows of a view; None if no engine told them."""
        return None if self.shown is None else self.shown.get(view)

    def _row(self, view: str, name: str) -> Row:
        return next((row for row in self.rows(view) or () if row.get("name") == name), {})

    def _planned(self, vm: str) -> int | None:
        return self.plan.places[vm].cpu if self.plan else None

    @cached_property
    def ports(self) -> tuple[PortView, ...]:
        if self.config is None:
            return tuple(_port_of(row) for row in self.rows("vms") or ())
        return tuple(
            PortView(
                name=name,
                socket=vm.socket,
                mode=vm.mode,
                uplink=vm.uplink,
                macs=vm.mac,
                vlan=vm.vlan,
                queue_pairs=vm.queue_pairs,
                processor=_processor(row) if row else self._planned(name),
                mtu=vm.mtu,
                weight=vm.weight,
                row=row,
            )
            for name, vm in self.config.vms.items()
            for row in [self._row("vms", name)]
        )

    @cached_property
    def uplinks(self) -> dict[str, UplinkView]:
        if self.config is None:
            views = {str(row.get("name")): _uplink_of(row) for row in self.rows("uplinks") or ()}
        else:
            views = {
                name: UplinkView(
                    name=name,
                    kind=uplink.kind,
                    device=getattr(uplink, "device", None),
                    bridge=getattr(uplink, "bridge", None),
                    mtu=uplink.mtu,
                    promiscuous=getattr(uplink, "promiscuous", False)
                    or row.get("membership") == "promiscuous",
                    processors=uplink.processors,
                    queues=uplink.queues,
                    row=row,
                )
                for name, uplink in self.config.uplinks.items()
                for row in [self._row("uplinks", name)]
            }
        links = self.facts.links
        return {name: replace(view, link=links.get(view.device or "")) for name, view in views.items()}

    @cached_property
    def plan(self) -> Plan | None:
        """What an engine of this configuration would choose on this host; None if it would refuse, or nobody can tell."""
        if self.config is None or self.facts.topology is None:
            return None
        try:
            return plan(self.config, self.facts.topology, self.where)
        except ConfigError:
            return None

    @cached_property
    def processors(self) -> tuple[int, ...]:
        """The workers' processors: in effect, else as they would be chosen; none if nobody can tell."""
        rows = self.rows("processors")
        if rows:
            return tuple(sorted({cpu for row in rows for cpu in row.get("effective") or [row["cpu"]]}))
        if self.plan is not None:
            return self.plan.choice.cpus
        return self.config.engine.processors or () if self.config else ()

    @property
    def says(self) -> str:
        """Where the processors were read."""
        if self.rows("processors"):
            return "vmq show processors"
        why = f", {self.plan.choice.why}" if self.plan else ""
        return f"{self.where}{why}"

    @cached_property
    def machines(self) -> tuple[Machine, ...]:
        return (*self.facts.machines, *self.domains)

    @cached_property
    def attached(self) -> tuple[Attached, ...]:
        """The guests' devices that belong to a VM port."""
        by_socket = {port.socket: port for port in self.ports if port.socket}
        by_mac = {mac: port for port in self.ports for mac in port.macs}
        found = []
        for machine in self.machines:
            for nic in machine.nics:
                own = by_socket.get(nic.socket or "")
                port = own or (by_mac.get(nic.mac or "") if nic.backend == "vhost-user" else None)
                if port is not None:
                    found.append(Attached(port, machine, nic, by_socket=own is not None))
        return tuple(found)

    def uplink_of(self, port: PortView) -> UplinkView | None:
        return self.uplinks.get(port.uplink or "")

    def mtu_of(self, port: PortView) -> int | None:
        """What a VM port takes; None where nobody can tell before it runs."""
        uplink = self.uplink_of(port)
        return port.mtu or (uplink.mtu_in_effect if uplink else MTU_DEFAULT)

    def key(self, table: str, key: str) -> str:
        """A key of the configuration, as evidence names it."""
        return f"{self.where}: [{table}] {key}"


Rule = Callable[[Situation], list[Outcome]]


def ports_on(see: Situation, uplink: str) -> Iterator[PortView]:
    """The VM ports of an uplink."""
    return (port for port in see.ports if port.uplink == uplink)


def _processor(row: Row) -> int | None:
    served = row.get("processors") or [None]
    return served[0] if isinstance(served[0], int) else None


def _port_of(row: Row) -> PortView:
    return PortView(
        name=str(row.get("name")),
        socket=str(row.get("socket", "")),
        mode=str(row.get("mode", "listen")),
        uplink=row.get("uplink"),
        macs=tuple(row.get("mac") or ()),
        vlan=row.get("vlan"),
        queue_pairs=row.get("queue_pairs") or 1,
        processor=_processor(row),
        mtu=row.get("mtu"),
        weight=row.get("weight", 100),
        row=row,
    )


def _uplink_of(row: Row) -> UplinkView:
    return UplinkView(
        name=str(row.get("name")),
        kind=str(row.get("kind", "")),
        device=row.get("device"),
        bridge=row.get("bridge"),
        mtu=row.get("mtu"),
        promiscuous=row.get("membership") == "promiscuous",
        queues=row.get("queues"),
        row=row,
    )
