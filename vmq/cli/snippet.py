# SPDX-License-Identifier: Apache-2.0
"""`vmq snippet`: the exact lines that connect a VM of the configuration, for QEMU or libvirt.

Three things go wrong when they are written by hand, and each is settled here:
- guest memory that is not shared: the socket connects, and no frame moves;
- the direction: vmq's `mode` is what vmq does, libvirt's is what QEMU is, so both are named in a comment;
- MSI-X vectors: two for each queue pair, one for configuration changes, one for control. Only QEMU 7.2
  without KVM must have none: it crashes when a vhost-user device starts with them (--tcg).

`reconnect=1` and not `reconnect-ms`, which QEMU older than 9.2 does not know.
"""

from __future__ import annotations

import argparse
import html
import shlex
from typing import TYPE_CHECKING

from vmq.cli.grammar import QEMU_IS, VMS, Verbs, add_config, add_verb, offer, shortened
from vmq.errors import ConfigError

if TYPE_CHECKING:
    from vmq.config import Config, Vm

QUEUE_SIZE = 1024  # the largest that QEMU takes: the most room for a burst
SIZES = "KMGT"


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "snippet", run, "what QEMU or libvirt has to be told about a VM")
    parser.add_argument("form", choices=tuple(FORMS), type=shortened(FORMS), help="one of %(choices)s")
    offer(parser.add_argument("vm", metavar="VM", help="the NAME of a [vm.NAME]"), VMS)
    add_config(parser)
    parser.add_argument("--tcg", action="store_true", help="for QEMU without KVM")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        type=_memory,
        default="1G",
        help="the guest's memory (default: %(default)s)",
    )
    parser.add_argument(
        "--queues",
        metavar="N",
        type=int,
        help="receive queues (default: its queue_pairs if less than 16, else 1)",
    )


def run(args: argparse.Namespace) -> int:
    from vmq.config import QUEUE_PAIRS_MAX, load

    config = load(args.config)
    vm = config.vms.get(args.vm)
    if vm is None:
        others = ", ".join(config.vms) or "none"
        raise ConfigError(args.config, f"there is no [vm.{args.vm}]", f"Name one of the file: {others}")
    queues = args.queues or (1 if vm.queue_pairs == QUEUE_PAIRS_MAX else vm.queue_pairs)
    if not 1 <= queues <= vm.queue_pairs:
        raise ConfigError(
            "vmq snippet --queues",
            f"{queues} asked for, but [vm.{args.vm}] offers {vm.queue_pairs}",
            f"Give a number from 1 to {vm.queue_pairs}, or raise its queue_pairs",
        )
    print(FORMS[args.form](args.vm, vm, queues, _mtu(config, vm), args.memory, tcg=args.tcg))
    return 0


def qemu(name: str, vm: Vm, queues: int, mtu: int | None, memory: str, *, tcg: bool) -> str:
    """Options for a command line, with their comments before them: a shell allows none in between."""
    path = vm.socket.replace(",", ",,")  # QEMU's way to quote a comma
    side = "reconnect=1" if vm.mode == "listen" else "server=on"
    many = ",mq=on" if queues > 1 else ""
    device = f",id={vm.qmp_nic}" if vm.qmp_nic else ""
    mtu_option = f",host_mtu={mtu}" if mtu else ""
    options = [
        f"-m {memory} -object memory-backend-memfd,id=vmqmem,size={memory},share=on",
        "-machine q35,memory-backend=vmqmem",
        shlex.join(["-chardev", f"socket,id=vmq-{name},path={path},{side}"]),
        f"-netdev vhost-user,id=vmqn-{name},chardev=vmq-{name},queues={queues}",
        (
            f"-device virtio-net-pci,netdev=vmqn-{name}{device},mac={vm.mac[0]}{many},"
            f"vectors={0 if tcg else 2 * queues + 2},"
            f"rx_queue_size={QUEUE_SIZE},tx_queue_size={QUEUE_SIZE}{mtu_option}"
        ),
        *([shlex.join(["-qmp", _qmp(vm.qmp)])] if vm.qmp else ()),
    ]
    return "\n".join([*(f"# {line}" for line in _comments(name, vm, tcg=tcg)), " \\\n".join(options)])


def libvirt(name: str, vm: Vm, queues: int, mtu: int | None, memory: str, *, tcg: bool) -> str:
    """Elements for a domain, in the long form that libvirt 9 needs."""
    alias = f"ua-vmq-{name.replace('.', '_')}"  # libvirt allows no dot
    mtu_element = [f"  <mtu size='{mtu}'/>"] if mtu else []
    reconnect = ["    <reconnect enabled='yes' timeout='1'/>"] if vm.mode == "listen" else []
    lines = [
        *(f"<!-- {line.replace('--', '- -')} -->" for line in _comments(name, vm, tcg=tcg)),
        f"<memory unit='{memory[-1]}iB'>{memory[:-1]}</memory>",
        "<memoryBacking>",
        "  <source type='memfd'/>",
        "  <access mode='shared'/>",
        "</memoryBacking>",
        "<interface type='vhostuser'>",
        f"  <mac address='{vm.mac[0]}'/>",
        f"  <source type='unix' path='{html.escape(vm.socket)}' mode='{QEMU_IS[vm.mode]}'>",
        *reconnect,
        "  </source>",
        "  <model type='virtio'/>",
        f"  <driver queues='{queues}' rx_queue_size='{QUEUE_SIZE}' tx_queue_size='{QUEUE_SIZE}'/>",
        *mtu_element,
        f"  <alias name='{alias}'/>",
        "</interface>",
        *(_no_vectors(alias) if tcg else ()),
        *(_qmp_elements(vm.qmp, vm.qmp_nic, alias) if vm.qmp else ()),
    ]
    return "\n".join(lines)


FORMS = {"qemu": qemu, "libvirt": libvirt}


def _comments(name: str, vm: Vm, *, tcg: bool) -> list[str]:
    does = "vmq listens, QEMU connects" if vm.mode == "listen" else "QEMU listens and waits, vmq connects"
    lines = [
        (
            f'VM "{name}": {does}. '
            f'vmq calls it mode "{vm.mode}", libvirt mode "{QEMU_IS[vm.mode]}" after what QEMU is.'
        ),
        "Guest memory must be shared, or the socket connects and no frame moves.",
    ]
    if vm.qmp:
        lines.append("The QMP socket is for vmq alone: QEMU serves one client at a time.")
    if tcg:
        lines.append("No MSI-X vectors: QEMU 7.2 without KVM crashes with them. With KVM leave out --tcg.")
    return lines


def _no_vectors(alias: str) -> list[str]:
    return [
        "<!-- Needs libvirt 8.2, and on <domain>: xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' -->",
        "<qemu:override>",
        f"  <qemu:device alias='{alias}'>",
        "    <qemu:frontend>",
        "      <qemu:property name='vectors' type='unsigned' value='0'/>",
        "    </qemu:frontend>",
        "  </qemu:device>",
        "</qemu:override>",
    ]


def _qmp(path: str) -> str:
    return f"unix:{path.replace(',', ',,')},server=on,wait=off"


def _qmp_elements(path: str, device: str | None, alias: str) -> list[str]:
    rename = f'<!-- libvirt gives the device an id of its own: set qmp_nic = "{alias}" -->'
    return [
        *([rename] if device not in {None, alias} else ()),
        "<!-- On <domain>: xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' -->",
        "<qemu:commandline>",
        "  <qemu:arg value='-qmp'/>",
        f"  <qemu:arg value='{html.escape(_qmp(path))}'/>",
        "</qemu:commandline>",
    ]


def _mtu(config: Config, vm: Vm) -> int | None:
    """What the guest is told: the VM's MTU, else its uplink's, else nothing."""
    uplink = config.uplinks[vm.uplink] if vm.uplink else None
    return vm.mtu or (uplink.mtu if uplink else None)


def _memory(text: str) -> str:
    if not (text[:-1].isdecimal() and text[-1] in SIZES):
        raise argparse.ArgumentTypeError(f'"{text}" is not a size: write it as 512M or 2G')
    return text
