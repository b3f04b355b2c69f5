# SPDX-License-Identifier: Apache-2.0
"""A guest with a second address behind one network device: it is reached there, because QEMU is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.image import NET, Contents
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import vhost_user
from tests.vm.lab.qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(200)]
OWN, ADDED = "52:54:00:00:00:01", "0e:fd:00:00:00:02"
MACVLAN = Contents((*NET.modules, "macvlan"))
CONFIG = f"""
[uplink.lan]
kind = "tap"
device = "vmqtap0"

[vm.web]
socket = "{{folder}}/web.sock"
uplink = "lan"
mac    = "{OWN}"
qmp    = "{{folder}}/web.qmp"
"""


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_guest_is_reached_at_an_address_that_it_adds(tmp_path: Path) -> None:
    """The receive filter comes and goes with the address; while it is there, frames from it are no spoof."""
    nic = vhost_user(tmp_path / "web.sock", OWN, "10.0.0.1/24")
    qmp = ("-qmp", f"unix:{tmp_path}/web.qmp,server=on,wait=off")
    with (
        Namespace("follow") as host,
        EngineProcess(tmp_path, CONFIG, host) as engine,
        Guest("web", [nic], image=MACVLAN, arguments=qmp) as guest,
    ):
        host.address("vmqtap0", "10.0.0.254/24")

        def filters() -> dict[str, str]:
            return {row["mac"]: row["source"] for row in engine.ask("show", what="filters")}

        guest.ready().run(f"modprobe macvlan; ip link add link eth0 name mv0 address {ADDED} type macvlan")
        guest.run("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore")  # else eth0 answers for the others
        guest.run("ip addr flush dev eth0; ip addr add 10.0.0.2/24 dev mv0; ip link set mv0 up")
        until(lambda: filters() == {OWN: "config", ADDED: "followed"})
        host.run("ping", "-c", "3", "-i", "0.2", "-W", "2", "10.0.0.2")
        neighbour = host.run("ip", "neighbour", "show", "10.0.0.2")
        row = engine.show("vms")["web"]
        guest.run("ip link delete mv0")
        until(lambda: filters() == {OWN: "config"})
        told = [record for record in engine.ask("events") if record["event"] == "followed"]

    assert ADDED in neighbour
    assert (row["following"]["state"], row["last_error"]) == ("following", None)
    assert [(record["came"], record["went"]) for record in told] == [([ADDED], []), ([], [ADDED])]
