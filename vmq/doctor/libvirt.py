# SPDX-License-Identifier: Apache-2.0
"""A libvirt domain's XML, as `virsh dumpxml` prints it, as a Machine.

Memory is shared if <memoryBacking> says <access mode='shared'/>, or if every NUMA cell says memAccess='shared'. The mode
of a vhost-user interface is QEMU's: a server listens.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from vmq.doctor import qemu
from vmq.doctor.machines import Machine, Nic
from vmq.errors import ConfigError

SIZE_MAX = 4 << 20  # bytes; a domain has some ten thousand


def load(path: str) -> Machine:
    """The domain of a file; ConfigError if it is none."""
    try:
        with Path(path).open("rb") as file:
            written = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError(
            path, f"cannot be read: {error.strerror}", "Give the path of a readable file"
        ) from None
    remedy = "Give what virsh dumpxml DOMAIN prints"
    if len(written) > SIZE_MAX or b"<!ENTITY" in written:  # entities can grow without bound
        raise ConfigError(path, "is too large, or declares entities, for a domain", remedy)
    try:
        domain = ET.fromstring(written)  # noqa: S314 - entities are refused above
    except ET.ParseError as error:
        raise ConfigError(path, f"is not XML: {error}", remedy) from None
    if domain.tag != "domain":
        raise ConfigError(path, f"describes a {domain.tag}, not a domain", remedy)
    return parse(domain, path)


def parse(domain: ET.Element, where: str) -> Machine:
    """The machine of a <domain>."""
    return Machine(
        name=(domain.findtext("name") or "").strip() or where,
        where=where,
        shared=_shared(domain),
        vcpus=qemu.number((domain.findtext("vcpu") or "1").strip()) or 1,
        nics=tuple(_nic(interface) for interface in domain.findall("devices/interface")),
        passthrough=domain.find("devices/interface[@type='hostdev']") is not None
        or domain.find("devices/hostdev[@type='pci']") is not None,
    )


def _shared(domain: ET.Element) -> bool:
    access = domain.find("memoryBacking/access")
    cells = domain.findall("cpu/numa/cell")
    if cells and all(cell.get("memAccess") for cell in cells):
        return all(cell.get("memAccess") == "shared" for cell in cells)
    return access is not None and access.get("mode") == "shared"


def _nic(interface: ET.Element) -> Nic:
    def said(path: str, key: str) -> str | None:
        element = interface.find(path)
        return None if element is None else element.get(key)

    kind, mac = interface.get("type", ""), said("mac", "address")
    queues = qemu.number(said("driver", "queues")) or 1
    return Nic(
        backend={"vhostuser": "vhost-user", "bridge": "tap", "network": "tap"}.get(kind, kind),
        socket=said("source", "path"),
        server=said("source", "mode") == "server",
        mac=mac.lower() if mac else None,
        queues=queues,
        multiqueue=queues > 1,
        rx_queue_size=qemu.number(said("driver", "rx_queue_size")) or qemu.RX_QUEUE_SIZE,
        mtu=qemu.number(said("mtu", "size")) or None,
        mergeable=said("driver/host", "mrg_rxbuf") != "off",
        standby=said("teaming", "type") == "persistent",
    )
