# SPDX-License-Identifier: Apache-2.0
"""The steps that several tests take in a guest: files, streams, DHCP, VLANs, iSCSI, FCoE.

What needs many lines of shell is a script in the folder `guest`; this is how to call it, and what it must answer.
A function returns only what it has checked.
"""

from __future__ import annotations

import re
import time

from tests.vm.lab.errors import LabTimeoutError
from tests.vm.lab.qemu import Guest, Job

ISCSI_TARGET = "iqn.2026-11.vmq:disk"


def make_file(guest: Guest, path: str, mebibytes: int) -> str:
    """A file of random bytes; returns its md5 sum."""
    guest.run(f"mkdir -p $(dirname {path}); dd if=/dev/urandom of={path} bs=1M count={mebibytes}", 120)
    return md5(guest, path)


def md5(guest: Guest, path: str) -> str:
    return guest.run(f"md5sum {path}", 120).split()[0]


def serve_http(guest: Guest, folder: str = "/srv") -> None:
    """Serve a folder on port 80, over IPv4 and IPv6."""
    guest.run(f"mkdir -p {folder}; httpd -h {folder}")


def fetch(guest: Guest, url: str, timeout: float = 120) -> str:
    """The md5 sum of what the URL gives."""
    # No -T: busybox-static 1.35 crashes with it.
    guest.run(f"wget -q -O /run/fetched '{url}'", timeout)
    return md5(guest, "/run/fetched")


def receive_stream(guest: Guest, port: int, path: str = "/run/received") -> Job:
    """Take one TCP connection and keep what comes; `received` tells how far it is."""
    job = guest.start(f"receive {port} {path}")
    deadline = time.monotonic() + 10
    while f"{port:04X} " not in guest.run("cat /proc/net/tcp /proc/net/tcp6"):
        if time.monotonic() > deadline:
            raise LabTimeoutError(f"{guest.name}: does not listen on port {port}: {job.output}")
    return job


def received(guest: Guest, path: str = "/run/received") -> int:
    """How many bytes of a stream have come."""
    return int(guest.run(f"wc -c <{path}"))


def send_stream(guest: Guest, path: str, address: str, port: int) -> Job:
    """Send a file over one TCP connection."""
    return guest.start(f"nc {address} {port} <{path}")


def dhcp(guest: Guest, link: str = "eth0") -> str:
    """Get a lease, configure the link with it; returns the address."""
    output = guest.run(f"udhcpc -i {link} -n -q -t 10 -T 1 -s /bin/dhcp-script")
    found = re.search(r"lease of (\S+) obtained", output)
    assert found is not None, output
    return found[1]


def vlan(guest: Guest, number: int, *addresses: str, link: str = "eth0") -> str:
    """A tagged sub-interface, up, with its addresses; returns its name."""
    name = f"{link}.{number}"
    guest.run(f"modprobe 8021q; ip link add link {link} name {name} type vlan id {number}")
    guest.run(f"ip link set {name} up")
    for address in addresses:
        guest.run(f"ip address add {address} dev {name}")
    return name


def iscsi_target(guest: Guest, address: str) -> None:
    """Offer a RAM disk of 16 MiB as LUN 0 of ISCSI_TARGET on an address of the guest (image STORAGE)."""
    guest.run(f"iscsi-target {address} {ISCSI_TARGET}")


def iscsi_login(guest: Guest, address: str, target: str = ISCSI_TARGET) -> None:
    """Log in and wait for the disk /dev/sda (image STORAGE)."""
    guest.run(f"iscsi-login {address} {target}", 60)


def fcoe_target(guest: Guest, initiator_mac: str, link: str = "eth0") -> None:
    """Offer a RAM disk of 16 MiB to one initiator over FCoE (image STORAGE). Comes before its login."""
    guest.run(f"fcoe-target {link} {initiator_mac}")


def fcoe_login(guest: Guest, link: str = "eth0") -> str:
    """Log in over FCoE and wait for the disk /dev/sda; returns the FC_ID, such as `0x000002`."""
    _, fc_id, state = guest.run(f"fcoe-login {link}", 60).split()[-3:]
    assert state == "Online", state
    return fc_id


def verify_disk(guest: Guest, mebibytes: int = 2, device: str = "/dev/sda") -> str:
    """Write random bytes to a block device, read them back from it, compare; returns their md5 sum."""
    output = guest.run(f"verify-disk {device} {mebibytes}", 120).split()
    assert output[-2] == "PASS", output
    return output[-1]
