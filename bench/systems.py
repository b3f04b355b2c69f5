# SPDX-License-Identifier: Apache-2.0
"""The systems that are compared: each serves n sockets, and replays frames from memory or takes what guests send.

    vmq        capture in memory ─► filters ─► n VM ports             one worker, on processor ENGINE_CPU
    ovs        net_pcap, endless ─► n flow rules by MAC ─► n dpdkvhostuserclient ports       one PMD, the same processor
    net_vhost  testpmd, net_null ─► net_vhost: one guest, nothing is classified              one lcore, the same processor

vmq and OVS replay the same capture, whose frames reach past the caches; net_null makes frames of nothing, of one size:
of several sizes they come from the capture there, too. Without frames the uplink is a sink that counts: vmq's memory
uplink, OVS's net_null; or one that keeps them, for a proof. Each is a context manager that gives the sockets, which side
listens, and what it counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tests.dpdk.frames import mac_bytes, write_capture
from tests.dpdk.hugepages import hugepages
from tests.dpdk.lab import Testpmd
from tests.vm.lab.engine import EngineProcess

ENGINE_CPU, GUEST_CPU = 1, 0
FLOWS, WORKING_SET, SEED = 8192, 8 << 20, 20260
MIXES = {"imix": (64,) * 7 + (570,) * 4 + (1514,)}  # simple IMIX
OVS_MEBIBYTES = 1400
PCAP_BUFFERS, PCAP_MEBIBYTES = 1 << 16, 512  # of testpmd, which loads a whole capture
SOURCE = "02:00:00:00:00:99"  # the station behind the uplink
OVS = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
UPLINK_PORT, FIRST_PORT = 1, 10  # OpenFlow numbers
Size = int | str  # bytes of every frame, or one of MIXES


@dataclass(frozen=True)
class Load:
    """What is served: so many guests, and frames to them without end; without any, the uplink is a sink."""

    guests: int
    frames: Sequence[bytes] = ()
    kept: Path | None = None  # where a sink writes what it gets
    idle: str = "sleep"  # what our processor does without work; those of the others always poll


@dataclass(frozen=True)
class Counts:
    """What a system says of itself: frames that left by the uplink, frames that it dropped and has a name for."""

    to_wire: int
    dropped: int


@dataclass(frozen=True)
class Served:
    """A running system."""

    sockets: list[Path]
    guests_listen: bool
    log: Path
    engine: EngineProcess | None = None
    counts: Callable[[], Counts] = lambda: Counts(0, 0)

    def complaints(self) -> str:
        """The last lines that it wrote."""
        return "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-12:])


def mac(number: int) -> str:
    """The address of guest `number`."""
    return f"52:54:00:00:01:{number:02x}"


# --- frames --------------------------------------------------------------------------------------------------


def named(size: Size) -> str:
    """In words."""
    return f"{size} B" if isinstance(size, int) else size.upper()


def sizes_of(size: Size) -> list[int]:
    """The bytes of each frame: WORKING_SET of them at least, in FLOWS frames at least."""
    mix = MIXES[size] if isinstance(size, str) else (size,)
    rounds = -(-max(FLOWS, WORKING_SET * len(mix) // sum(mix)) // len(mix))
    sizes = [one for one in mix for _ in range(rounds)]
    random.Random(SEED + 1).shuffle(sizes)
    return sizes


@lru_cache(maxsize=2)
def frames_for(guests: int, size: Size) -> tuple[bytes, ...]:
    """UDP frames in FLOWS flows to the guests' addresses in random order, WORKING_SET bytes of them or nearly.

    A flow is a pair of addresses and ports, and belongs to one guest; a frame carries its number at its end.
    """
    sizes = sizes_of(size)
    numbers = random.Random(SEED).sample(range(len(sizes)), len(sizes))
    return tuple(frame_to_guest(number, guests, sizes[number]) for number in numbers)


@lru_cache(maxsize=2)
def frames_in_turns(guests: int, size: int) -> tuple[bytes, ...]:
    """The same frames, in an order in which every guest gets one before any gets its next: no two together."""
    turns, shuffled = len(sizes_of(size)) // guests, random.Random(SEED)
    order = shuffled.sample(range(turns), turns)
    return tuple(
        frame_to_guest(turn * guests + guest, guests, size)
        for turn in order
        for guest in shuffled.sample(range(guests), guests)
    )


def frame_to_guest(number: int, guests: int, size: int) -> bytes:
    """One frame of a flow, to the guest whose it is."""
    flow = number % FLOWS
    return udp_frame(mac(flow % guests), SOURCE, flow, number, size)


def udp_frame(to: str, source: str, flow: int, number: int, size: int) -> bytes:
    """A valid datagram of a flow; its number stands in its last four bytes."""
    addresses = bytes((198, 18, flow >> 6 & 255, flow >> 14 & 255, 198, 19, 0, 1))  # rfc-2544
    head = struct.pack(">BBHHHBBH", 0x45, 0, size - 14, 0, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:]
    ports = struct.pack(">HHHH", 1024 + flow % 64, 9, size - 34, 0)
    ethernet = mac_bytes(to) + mac_bytes(source) + b"\x08\x00"
    return (ethernet + head + ports).ljust(size - 4, b"\x55") + struct.pack(">I", number)


# --- vmq -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def vmq(folder: Path, load: Load) -> Iterator[Served]:
    """Our engine."""
    text = f'[engine]\napi = "{folder}/api.sock"\nprocessors = "{ENGINE_CPU}"\nidle = "{load.idle}"\n[uplink.source]\n'
    if load.frames:
        capture = write_capture(folder / "in.pcap", load.frames)
        text += f'kind = "pcap"\nread = "{capture}"\nrepeat = true\nlossless = false\n'
    elif load.kept:
        text += f'kind = "pcap"\nwrite = "{load.kept}"\n'
    else:
        text += 'kind = "memory"\ncount = 0\n'
    for number in range(load.guests):
        text += (
            f'[vm.v{number}]\nsocket = "{folder}/v{number}.sock"\nuplink = "source"\nmac = "{mac(number)}"\n'
        )
    with EngineProcess(folder, text) as engine:
        sockets = [folder / f"v{number}.sock" for number in range(load.guests)]
        yield Served(sockets, False, engine.log_file, engine, lambda: _vmq_counts(engine))


def _vmq_counts(engine: EngineProcess) -> Counts:
    uplink, queues = engine.show("uplinks")["source"], engine.show("queues")
    dropped = sum(sum(row["drops"].values()) for row in (uplink, *queues.values()))
    return Counts(uplink["frames_to_wire"], dropped)


# --- net_vhost -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def net_vhost(folder: Path, load: Load) -> Iterator[Served]:
    """DPDK's vhost driver behind testpmd; one guest only."""
    if load.guests != 1 or not load.frames:
        raise ValueError("net_vhost is compared with one guest that receives: it classifies nothing")
    socket = folder / "be.sock"
    lengths, buffers, memory = {len(frame) for frame in load.frames}, 16384, 256
    source = f"net_null0,size={max(lengths)},copy=0"
    if len(lengths) > 1:
        source = f"net_pcap0,rx_pcap={write_capture(folder / 'in.pcap', load.frames)},infinite_rx=1"
        buffers, memory = PCAP_BUFFERS, PCAP_MEBIBYTES
    devices = [source, f"net_vhost0,iface={socket},queues=1"]
    with Testpmd(folder, devices, name="be", cpu=ENGINE_CPU, buffers=buffers, memory=memory) as back_end:
        back_end.say("start")
        yield Served([socket], False, back_end.log_file)


# --- Open vSwitch --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ovs(folder: Path, load: Load) -> Iterator[Served]:
    """Open vSwitch with DPDK, and the hugepages it needs."""
    with hugepages(OVS_MEBIBYTES) as pages:
        switch = Vswitch(folder)
        try:
            switch.start(pages)
            yield switch.serve(load)
        finally:
            switch.end()


class Vswitch:
    """Its two daemons, whose files all lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.remote = folder, f"unix:{folder}/db.sock"
        self.pids, self._control = [folder / "ovsdb.pid", folder / "vswitchd.pid"], f"{folder}/vswitchd.ctl"
        self._environment = os.environ | dict.fromkeys(
            ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"), str(folder)
        )

    def run(self, *argv: str) -> str:
        """One of its commands; what it printed. OSError with what it complained of."""
        done = subprocess.run(argv, check=False, env=self._environment, capture_output=True, timeout=60)
        if done.returncode:
            raise OSError(f"{argv[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode()

    def start(self, pages: Path) -> None:
        folder, remote = self.folder, self.remote
        self.run("ovsdb-tool", "create", f"{folder}/conf.db", SCHEMA)
        self.run("ovsdb-server", f"{folder}/conf.db", f"--remote=p{remote}", f"--pidfile={self.pids[0]}", "--detach",
                 f"--log-file={folder}/ovsdb.log")  # fmt: skip
        settings = {
            "dpdk-init": "true", "dpdk-socket-mem": "1024", "pmd-cpu-mask": hex(1 << ENGINE_CPU),
            "dpdk-lcore-mask": hex(1 << GUEST_CPU), "dpdk-hugepage-dir": str(pages),
            "dpdk-extra": f"--no-pci --file-prefix=vmqovs{os.getpid()}",
        }  # fmt: skip
        self.run("ovs-vsctl", f"--db={remote}", "--no-wait", "init")
        self.run("ovs-vsctl", f"--db={remote}", "--no-wait", "set", "Open_vSwitch", ".",
                 *(f'other_config:{key}="{value}"' for key, value in settings.items()))  # fmt: skip
        self.run(OVS, remote, f"--pidfile={self.pids[1]}", "--detach", f"--log-file={folder}/vswitchd.log",
                 f"--unixctl={self._control}")  # fmt: skip

    def serve(self, load: Load) -> Served:
        """A bridge with an uplink, n guests and a rule for each address."""
        ctl = ("ovs-vsctl", f"--db={self.remote}", "--timeout=30")
        bridge, sockets = f"{self.folder}/br0.mgmt", [self.folder / f"v{n}.sock" for n in range(load.guests)]
        self.run(*ctl, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        self.run("ovs-ofctl", "del-flows", bridge)
        self.run("ovs-ofctl", "add-flow", bridge, f"dl_dst={SOURCE},actions=output:{UPLINK_PORT}")
        for number, socket in enumerate(sockets):
            port = number + FIRST_PORT
            self.run(*ctl, "add-port", "br0", f"v{number}", "--", "set", "Interface", f"v{number}",
                     "type=dpdkvhostuserclient", f"options:vhost-server-path={socket}",
                     f"ofport_request={port}")  # fmt: skip
            self.run("ovs-ofctl", "add-flow", bridge, f"dl_dst={mac(number)},actions=output:{port}")
        self.run(*ctl, "add-port", "br0", "p0", "--", "set", "Interface", "p0", "type=dpdk",
                 f"options:dpdk-devargs={self._uplink(load)}", f"ofport_request={UPLINK_PORT}")  # fmt: skip
        return Served(sockets, True, self.folder / "vswitchd.log", counts=self.counts)

    def _uplink(self, load: Load) -> str:
        if load.frames:
            return f"net_pcap0,rx_pcap={write_capture(self.folder / 'in.pcap', load.frames)},infinite_rx=1"
        return f"net_pcap0,tx_pcap={load.kept}" if load.kept else "net_null0,no-rx=1"

    def counts(self) -> Counts:
        """From the ports, and from the datapath: frames for which it had no rule in time, and others."""
        ports = self.run("ovs-ofctl", "--no-names", "dump-ports", f"{self.folder}/br0.mgmt")
        return read_counts(ports, self.run("ovs-appctl", "-t", self._control, "coverage/show"))

    def end(self) -> None:
        for place in reversed(self.pids):
            _end(place)


def read_counts(ports: str, coverage: str) -> Counts:
    """What `ovs-ofctl --no-names dump-ports` and `ovs-appctl coverage/show` say."""
    uplink = re.search(rf"port +{UPLINK_PORT}:.*?tx pkts=(\d+)", ports, re.DOTALL)
    dropped = re.findall(r"drop=(\d+)", ports)
    dropped += re.findall(r"^(?:datapath_drop|drop_action)_\w+ .*total: (\d+)", coverage, re.MULTILINE)
    return Counts(int(uplink[1]) if uplink else 0, sum(map(int, dropped)))


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
    return tuple(SYSTEMS) if guests == 1 else CLASSIFYING
