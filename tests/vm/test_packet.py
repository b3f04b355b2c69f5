# SPDX-License-Identifier: Apache-2.0
"""Two engines joined by a wire (AF_PACKET on a veth pair): what real guests say crosses it, tagged and untagged."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.lab import recipes
from tests.vm.lab.wire import HOST4, LINK, MACS, Wire, wire

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with wire(tmp_path_factory.mktemp("wire")) as ready:
        yield ready


def test_guests_on_two_engines_ping_over_ipv4_and_ipv6_in_a_vlan_and_without(it: Wire) -> None:
    """The tag is put on by one engine, carried beside the frame by the kernel, and taken off by the other."""
    it.a.run("ping -c 3 -i 0.2 -W 2 10.0.0.2")
    it.a.run("ping6 -c 3 -i 0.2 -W 2 fd00::2")
    it.a.run("ping -c 3 -i 0.2 -W 2 10.1.0.2")
    it.a.run("ping6 -c 3 -i 0.2 -W 2 fd01::2")


def test_tcp_between_engines_arrives_intact(it: Wire) -> None:
    """16 MiB each way over the wire."""
    total = recipes.make_file(it.a, "/srv/page", 16)
    recipes.serve_http(it.a)

    assert recipes.fetch(it.b, "http://10.0.0.1/page") == total
    assert recipes.fetch(it.b, "http://10.1.0.1/page") == total


def test_unfinished_checksums_and_super_frames_of_the_host_are_completed(it: Wire, tmp_path: Path) -> None:
    """The host's offloads stay on: its TCP hands over super-frames without checksums; the guest gets neither."""
    shown = it.right.run("ethtool", "-k", LINK)
    assert "tcp-segmentation-offload: on" in shown
    assert "tx-checksumming: on" in shown
    data = os.urandom(16 << 20)
    (tmp_path / "page").write_bytes(data)
    server = it.right.popen("busybox", "httpd", "-f", "-h", str(tmp_path), "-p", f"{HOST4}:8080")
    try:
        time.sleep(0.3)
        got = recipes.fetch(it.a, f"http://{HOST4}:8080/page")
    finally:
        server.terminate()

    assert got == hashlib.md5(data, usedforsecurity=False).hexdigest()
    uplink = it.engines["a"].show("uplinks")["wire"]
    assert uplink["segmented"] > 0
    assert uplink["completed"] > 0


def test_fcoe_between_two_engines_verifies_a_lun(it: Wire) -> None:
    """Learned addresses join the membership of the socket: the wire's frames for them come in."""
    recipes.fcoe_target(it.a, MACS["b"][0])
    recipes.fcoe_login(it.b)
    recipes.verify_disk(it.b)

    filters = it.engines["b"].show("filters")
    assert any(mac.startswith("0e:fd:00") and row["source"] == "learned" for mac, row in filters.items())
