# SPDX-License-Identifier: Apache-2.0
"""What firmware needs to boot its guest from the network: DHCP, TFTP, HTTP, and a router that says it has nothing.

iPXE configures IPv4 and IPv6 at once and goes on when both are settled: without a router's word the latter takes it
more than ten seconds.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.lab.image import NET, build
from tests.vm.lab.netns import Namespace
from tests.vm.lab.qemu import KERNEL_OPTIONS
from tests.vm.lab.tftp import tftp_server

HTTP_PORT = 8080
LEASE = "10.0.0.99"  # the firmware's; the guest's own address comes with its kernel
SCRIPT = """#!ipxe
kernel http://{server}:{port}/vmlinuz initrd=initrd {options} vmq.eth0={address}/24
initrd initrd
boot
"""
DHCP = """interface {link}
start {lease}
end {lease}
static_lease {mac} {lease}
lease_file {folder}/leases
pidfile {folder}/pid
option subnet 255.255.255.0
siaddr {server}
boot_file script
"""
ROUTER_ADVERTISEMENT, HOP_LIMIT = 134, 255  # rfc-4861 §4.2 Router Advertisement Message Format
ADVERTISE_SECONDS = 0.5


@contextmanager
def netboot(
    namespace: Namespace, link: str, server: str, folder: Path, mac: str, address: str
) -> Iterator[list[str]]:
    """Serve the image NET to one guest, which then has `address`; gives the names of what TFTP has given out."""
    image, served = build(NET), folder / "boot"
    served.mkdir()
    (served / "vmlinuz").symlink_to(image.vmlinuz)
    (served / "initrd").symlink_to(image.initramfs)
    (served / "script").write_text(
        SCRIPT.format(server=server, port=HTTP_PORT, options=KERNEL_OPTIONS, address=address)
    )
    (folder / "leases").touch()
    (folder / "udhcpd.conf").write_text(
        DHCP.format(link=link, lease=LEASE, mac=mac, folder=folder, server=server)
    )
    namespace.popen("busybox", "udhcpd", "-f", str(folder / "udhcpd.conf"))
    namespace.popen("busybox", "httpd", "-f", "-h", str(served), "-p", f"{server}:{HTTP_PORT}")
    with tftp_server(namespace, served, server) as fetched, _router(namespace, link):
        yield fetched


@contextmanager
def _router(namespace: Namespace, link: str) -> Iterator[None]:
    """Advertise a router that has no prefix and is nobody's default."""
    raw = socket.socket
    sock = namespace.call(lambda: raw(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOP_LIMIT)
    ended = threading.Event()
    number = int(namespace.run("cat", f"/sys/class/net/{link}/ifindex"))
    packet = struct.pack("!BBHBBHII", ROUTER_ADVERTISEMENT, 0, 0, 64, 0, 0, 0, 0)

    def advertise() -> None:
        while not ended.wait(ADVERTISE_SECONDS):
            sock.sendto(packet, ("ff02::1", 0, 0, number))

    thread = threading.Thread(target=advertise, name="router", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)
        sock.close()
