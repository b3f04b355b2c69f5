# SPDX-License-Identifier: Apache-2.0
"""Hosts and situations for rules: made of records, or written as the files of a recorded host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmq.config import cpu_list, parse
from vmq.doctor.facts import Bond, Cpu, Facts, Link
from vmq.doctor.finding import Outcome
from vmq.doctor.machines import Machine, of_words
from vmq.doctor.situation import Situation
from vmq.topology import Topology

WEB, DB = "52:54:00:00:00:01", "52:54:00:00:00:02"
LAN = '[uplink.lan]\nkind = "packet"\ndevice = "eth0"\n'
ENGINE = '[engine]\nprocessors = "1"\n'


def host(*cores: str, nodes: tuple[str, ...] = (), isolated: str = "", **more: Any) -> Facts:
    """A host by its cores, as sibling lists, and its nodes, as processor lists. `more` are fields of Facts."""
    siblings = {cpu: cpu_list(core) for core in cores for cpu in cpu_list(core)}
    where = {cpu: node for node, cpus in enumerate(nodes) for cpu in cpu_list(cpus)}
    topology = Topology(
        tuple(sorted(siblings)),
        siblings=siblings,
        nodes=where,
        isolated=frozenset(cpu_list(isolated)) if isolated else frozenset(),
    )
    cpus = {cpu: Cpu(cpu, core, where.get(cpu)) for cpu, core in siblings.items()}
    return replace(Facts(topology=topology, cpus=cpus), **more)


EIGHT = ("0", "1", "2", "3", "4", "5", "6", "7")


def links(*some: Link) -> dict[str, Link]:
    return {link.name: link for link in some}


def bond(*members: str, mode: str = "802.3ad", name: str = "bond0") -> Link:
    return Link(name, bond=Bond(mode, members))


def nic(name: str, *irqs: int, queues: int = 4, **more: Any) -> Link:
    return Link(name, hardware=True, irqs=irqs, receive_queues=queues, **more)


def see(
    text: str = "", facts: Facts | None = None, *qemu: Machine, **shown: list[dict[str, Any]]
) -> Situation:
    """A situation: configuration as TOML ("" for none), host, guests, and the rows of views."""
    return Situation(
        facts=facts or Facts(),
        config=parse(text, "/etc/vmq.toml") if text else None,
        shown=shown or None,
        domains=qemu,
        where="vmq.toml",
    )


def vm(name: str, mac: str = WEB, **keys: Any) -> str:
    """The table of a VM."""
    lines = [f"{key} = {_toml(value)}" for key, value in {"mac": mac, **keys}.items()]
    return "\n".join([f"[vm.{name}]", *lines, ""])


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def qemu(
    name: str = "web", *more: str, mac: str = WEB, queues: int = 1, shared: bool = True, device: str = ""
) -> Machine:
    """The guest of a command line, as `vmq snippet qemu` prints it; `device`: more properties."""
    memory = f"memory-backend-memfd,id=m,size=1G,share={'on' if shared else 'off'}"
    words = ["-name", name, "-object", memory, "-machine", "q35,memory-backend=m"]
    words += ["-chardev", f"socket,id=c,path=/run/vmq/{name}.sock,reconnect=1"]
    words += ["-netdev", f"vhost-user,id=n,chardev=c,queues={queues}"]
    words += ["-device", f"virtio-net-pci,netdev=n,mac={mac},rx_queue_size=1024{device}", *more]
    return of_words(words, f"{name} (QEMU process)")


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def only(outcomes: list[Outcome]) -> Any:
    """The one thing that was found: with evidence, reason and fix."""
    (found,) = outcomes
    assert found.status == "found"
    assert found.evidence
    assert found.why
    assert found.fix is not None
    return found


def record(root: Path, files: Mapping[str, str]) -> Path:
    """A recorded host: path → text."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if path.name == "cmdline" else text + "\n")
    return root
