# SPDX-License-Identifier: Apache-2.0
"""The systems that are compared: each takes frames of one size for n guests from memory and serves n sockets.

    vmq        capture in memory ─► filters ─► n VM ports             one worker, on processor ENGINE_CPU
    ovs        net_pcap, endless ─► n flow rules by MAC ─► n dpdkvhostuserclient ports       one PMD, the same processor
    net_vhost  testpmd, net_null ─► net_vhost: one guest, nothing is classified              one lcore, the same processor

vmq and OVS replay the same capture, whose frames reach past the caches; net_null makes frames of nothing. Each is a
context manager that gives the sockets and which side listens.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.dpdk.frames import mac_bytes, write_capture
from tests.dpdk.hugepages import hugepages
from tests.dpdk.lab import Testpmd
from tests.vm.lab.engine import EngineProcess

ENGINE_CPU, GUEST_CPU = 1, 0
FLOWS, WORKING_SET, SEED = 8192, 8 << 20, 20260
OVS_MEBIBYTES = 1400
SOURCE = "02:00:00:00:00:99"
OVS = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


@dataclass(frozen=True)
class Served:
    """A running system."""

    sockets: list[Path]
    guests_listen: bool
    log: Path
    engine: EngineProcess | None = None

    def complaints(self) -> str:
        """The last lines that it wrote."""
        return "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-12:])


def mac(number: int) -> str:
    """The address of guest `number`."""
    return f"52:54:00:00:01:{number:02x}"


@contextlib.contextmanager
def vmq(folder: Path, guests: int, size: int) -> Iterator[Served]:
    """Our engine."""
    text = f'[engine]\napi = "{folder}/api.sock"\nprocessors = "{ENGINE_CPU}"\n'
    capture = write_capture(folder / "in.pcap", frames_for(guests, size))
    text += f'[uplink.source]\nkind = "pcap"\nread = "{capture}"\nrepeat = true\nlossless = false\n'
    for number in range(guests):
        text += (
            f'[vm.v{number}]\nsocket = "{folder}/v{number}.sock"\nuplink = "source"\nmac = "{mac(number)}"\n'
        )
    with EngineProcess(folder, text) as engine:
        yield Served([folder / f"v{number}.sock" for number in range(guests)], False, engine.log_file, engine)


def frames_for(guests: int, size: int) -> list[bytes]:
    """UDP frames in FLOWS flows to the guests' addresses in random order, WORKING_SET bytes of them at least.

    A flow is a pair of addresses and ports, and belongs to one guest; a frame carries its number at its end.
    """
    count = max(FLOWS, WORKING_SET // size)
    numbers = random.Random(SEED).sample(range(count), count)
    return [udp_frame(number % FLOWS, number, guests, size) for number in numbers]


def udp_frame(flow: int, number: int, guests: int, size: int) -> bytes:
    """One frame of a flow."""
    addresses = bytes((198, 18, flow >> 6 & 255, flow >> 14 & 255, 198, 19, 0, 1))  # rfc-2544
    head = struct.pack(">BBHHHBBH", 0x45, 0, size - 14, 0, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:]
    ports = struct.pack(">HHHH", 1024 + flow % 64, 9, size - 34, 0)
    ethernet = mac_bytes(mac(flow % guests)) + mac_bytes(SOURCE) + b"\x08\x00"
    return (ethernet + head + ports).ljust(size - 4, b"\x55") + struct.pack(">I", number)


@contextlib.contextmanager
def net_vhost(folder: Path, guests: int, size: int) -> Iterator[Served]:
    """DPDK's vhost driver behind testpmd; one guest only."""
    if guests != 1:
        raise ValueError("net_vhost is compared with one guest: it classifies nothing")
    socket = folder / "be.sock"
    devices = [f"net_null0,size={size},copy=0", f"net_vhost0,iface={socket},queues=1"]
    with Testpmd(folder, devices, name="be", cpu=ENGINE_CPU) as back_end:
        back_end.say("start")
        yield Served([socket], False, back_end.log_file)


@contextlib.contextmanager
def ovs(folder: Path, guests: int, size: int) -> Iterator[Served]:
    """Open vSwitch with DPDK, and the hugepages it needs."""
    with hugepages(OVS_MEBIBYTES) as pages, _ovs(folder, guests, size, pages) as served:
        yield served


@contextlib.contextmanager
def _ovs(folder: Path, guests: int, size: int, pages: Path) -> Iterator[Served]:
    capture = write_capture(folder / "in.pcap", frames_for(guests, size))
    environment = os.environ | dict.fromkeys(
        ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"), str(folder)
    )
    remote = f"unix:{folder}/db.sock"

    def run(*argv: str) -> None:
        subprocess.run(argv, check=True, env=environment, capture_output=True, timeout=60)

    run("ovsdb-tool", "create", f"{folder}/conf.db", SCHEMA)
    pids = [folder / "ovsdb.pid", folder / "vswitchd.pid"]
    try:
        run("ovsdb-server", f"{folder}/conf.db", f"--remote=p{remote}", f"--pidfile={pids[0]}", "--detach",
            f"--log-file={folder}/ovsdb.log")  # fmt: skip
        settings = {
            "dpdk-init": "true", "dpdk-socket-mem": "1024", "pmd-cpu-mask": hex(1 << ENGINE_CPU),
            "dpdk-lcore-mask": hex(1 << GUEST_CPU), "dpdk-hugepage-dir": str(pages),
            "dpdk-extra": f"--no-pci --file-prefix=vmqovs{os.getpid()}",
        }  # fmt: skip
        run("ovs-vsctl", f"--db={remote}", "--no-wait", "init")
        run("ovs-vsctl", f"--db={remote}", "--no-wait", "set", "Open_vSwitch", ".",
            *(f'other_config:{key}="{value}"' for key, value in settings.items()))  # fmt: skip
        run(OVS, remote, f"--pidfile={pids[1]}", "--detach", f"--log-file={folder}/vswitchd.log")
        yield _ovs_ports(folder, guests, capture, remote, run)
    finally:
        for place in reversed(pids):
            _end(place)


def _ovs_ports(folder: Path, guests: int, capture: Path, remote: str, run: object) -> Served:
    """A bridge with a source, n guests and a rule for each address."""
    assert callable(run)
    ctl = ("ovs-vsctl", f"--db={remote}", "--timeout=30")
    sockets = [folder / f"v{number}.sock" for number in range(guests)]
    run(*ctl, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    run("ovs-ofctl", "del-flows", f"{folder}/br0.mgmt")
    for number, socket in enumerate(sockets):
        run(*ctl, "add-port", "br0", f"v{number}", "--", "set", "Interface", f"v{number}", "type=dpdkvhostuserclient",
            f"options:vhost-server-path={socket}", f"ofport_request={number + 10}")  # fmt: skip
        run(
            "ovs-ofctl",
            "add-flow",
            f"{folder}/br0.mgmt",
            f"dl_dst={mac(number)},actions=output:{number + 10}",
        )
    run(*ctl, "add-port", "br0", "p0", "--", "set", "Interface", "p0", "type=dpdk",
        f"options:dpdk-devargs=net_pcap0,rx_pcap={capture},infinite_rx=1")  # fmt: skip
    return Served(sockets, True, folder / "vswitchd.log")


def _end(pid_file: Path) -> None:
    """End a daemon by its process id, and wait until it has gone."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        for _ in range(50):
            if not Path(f"/proc/{pid}").exists():
                return
            time.sleep(0.1)


CLASSIFYING = ("vmq", "ovs")  # by the address of a frame; what each guest gets can be compared
SYSTEMS = {"vmq": vmq, "net_vhost": net_vhost, "ovs": ovs}


def compared(guests: int) -> Sequence[str]:
    """The systems that serve so many guests."""
    return tuple(SYSTEMS) if guests == 1 else ("vmq", "ovs")
