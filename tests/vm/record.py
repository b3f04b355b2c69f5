# SPDX-License-Identifier: Apache-2.0
"""Record the capture that `vmq demo` replays: python -m tests.vm.record [FILE], as root.

Two Debian guests on two engines with a wire between (lab/wire.py) say what real machines say: ARP, neighbour
discovery, multicast, TCP, iSCSI, FCoE, and the same in a VLAN. tcpdump listens on the wire. A little of everything:
the file stays below a mebibyte.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.vm.lab import recipes
from tests.vm.lab.wire import HOST4, LINK, MACS, Wire, wire

TARGET = Path(__file__).parents[2] / "vmq" / "data" / "demo.pcap"
BYTES_MAX = 1 << 20


def disk_sample(it: Wire, device: str, kibibytes: int) -> None:
    """Write random blocks to a disk of b and read them back past the cache."""
    it.b.run(f"[ -b {device} ] && dd if=/dev/urandom of=/run/sample bs=1k count={kibibytes} 2>/dev/null")
    it.b.run(f"dd if=/run/sample of={device} bs=16k conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches")
    it.b.run(f"dd if={device} bs=1k count={kibibytes} 2>/dev/null | cmp - /run/sample")


def talk(it: Wire) -> None:
    """The traffic."""
    it.a.run(
        "ping -c 3 -i 0.2 -W 2 10.0.0.2; ping6 -c 3 -i 0.2 -W 2 fd00::2; ping6 -c 2 -W 2 -I eth0 ff02::1 || true"
    )
    it.a.run(f"ping -c 10 -i 0.1 -s 400 -W 2 {HOST4}")
    it.a.run(
        "dd if=/dev/urandom of=/run/page bs=1k count=40 2>/dev/null; mkdir -p /srv; cp /run/page /srv/page"
    )
    recipes.serve_http(it.a)
    recipes.fetch(it.b, "http://10.0.0.1/page")
    recipes.fetch(it.b, "http://10.1.0.1/page")
    it.b.run("ping -c 3 -i 0.2 -W 2 10.1.0.1; ping6 -c 3 -i 0.2 -W 2 fd01::1")
    it.b.run("ping -c 2 -W 1 -I eth1 224.0.0.1 || true")
    recipes.iscsi_target(it.a, "10.0.0.1")
    recipes.iscsi_login(it.b, "10.0.0.1")
    disk_sample(it, "/dev/sda", 64)
    it.b.run("echo 1 >/sys/block/sda/device/delete")
    recipes.fcoe_target(it.a, MACS["b"][0])
    recipes.fcoe_login(it.b)
    disk_sample(it, it.b.run("ls -d /dev/sd? | tail -1").strip(), 64)


def record(target: Path) -> int:
    """Write the capture; its bytes."""
    with tempfile.TemporaryDirectory() as folder, wire(Path(folder)) as it:
        command = it.left.command(["tcpdump", "-i", LINK, "-w", str(target), "-U", "-s", "0", "-Z", "root"])
        listener = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)
            talk(it)
            time.sleep(1)
        finally:
            listener.terminate()
            listener.wait(10)
    return target.stat().st_size


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    size = record(place)
    print(f"{place}: {size} bytes")
    sys.exit(0 if size <= BYTES_MAX else f"larger than {BYTES_MAX}: say less")
