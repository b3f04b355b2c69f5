# SPDX-License-Identifier: Apache-2.0
"""The systems that are compared: each takes frames of one size for n guests from memory and serves n sockets.

    vmq        memory uplink ─► filters ─► n VM ports             one worker, on processor ENGINE_CPU
    ovs        net_pcap, endless ─► n flow rules by MAC ─► n dpdkvhostuserclient ports       one PMD, the same processor
    net_vhost  testpmd, net_null ─► net_vhost: one guest, nothing is classified              one lcore, the same processor

Each is a context manager that gives the sockets and which side listens.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.dpdk.frames import write_capture
from tests.dpdk.lab import Testpmd
from tests.vm.lab.engine import EngineProcess

ENGINE_CPU, GUEST_CPU = 1, 0
FLOWS = 8192
OVS = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


@dataclass(frozen=True)
class Served:
    """A running system."""

    sockets: list[Path]
    guests_listen: bool
    engine: EngineProcess | None = None


def mac(number: int) -> str:
    """The address of guest `number`."""
    return f"52:54:00:00:01:{number:02x}"


@contextlib.contextmanager
def vmq(folder: Path, guests: int, size: int) -> Iterator[Served]:
    """Our engine."""
    text = f'[engine]\napi = "{folder}/api.sock"\nprocessors = "{ENGINE_CPU}"\n'
    text += f'[uplink.source]\nkind = "memory"\nsize = {size}\nflows = {FLOWS}\nlossless = false\n'
    for number in range(guests):
        text += (
            f'[vm.v{number}]\nsocket = "{folder}/v{number}.sock"\nuplink = "source"\nmac = "{mac(number)}"\n'
        )
    with EngineProcess(folder, text) as engine:
        yield Served([folder / f"v{number}.sock" for number in range(guests)], False, engine)


def frames_for(guests: int, size: int) -> list[bytes]:
    """UDP frames in FLOWS flows, shuffled over the guests' addresses."""
    frames = []
    for flow in range(FLOWS):
        to = bytes.fromhex(mac(flow * 2654435761 % 2**32 * guests >> 32).replace(":", ""))
        addresses = bytes((10, flow >> 16 & 255, flow >> 8 & 255, flow & 255, 10, 255, 0, 1))
        head = (
            to
            + bytes.fromhex("020000000099")
            + bytes.fromhex("08004500002e000000004011")
            + bytes(2)
            + addresses
        )
        frames.append(head.ljust(size, b"\0")[:size])
    return frames


@contextlib.contextmanager
def net_vhost(folder: Path, guests: int, size: int) -> Iterator[Served]:
    """DPDK's vhost driver behind testpmd; one guest only."""
    if guests != 1:
        raise ValueError("net_vhost is compared with one guest: it classifies nothing")
    socket = folder / "be.sock"
    devices = [f"net_null0,size={size},copy=0", f"net_vhost0,iface={socket},queues=1"]
    with Testpmd(folder, devices, name="be", cpu=ENGINE_CPU) as back_end:
        back_end.say("start")
        yield Served([socket], False)


@contextlib.contextmanager
def ovs(folder: Path, guests: int, size: int) -> Iterator[Served]:
    """Open vSwitch with DPDK."""
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
            "dpdk-lcore-mask": hex(1 << GUEST_CPU), "dpdk-extra": "--no-pci --file-prefix=vmqovs",
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
    return Served(sockets, True)


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


SYSTEMS = {"vmq": vmq, "net_vhost": net_vhost, "ovs": ovs}


def compared(guests: int) -> Sequence[str]:
    """The systems that serve so many guests."""
    return tuple(SYSTEMS) if guests == 1 else ("vmq", "ovs")
