# SPDX-License-Identifier: Apache-2.0
"""Two engines with a wire between them, and a Debian guest on each: whatever the guests say crosses the wire.

    guest a ── engine ── vmqw ══════ vmqw ── engine ── guest b
    eth0 untagged, eth1 VLAN 10                 the same
                 namespace left   namespace right, whose own stack is 10.0.0.254

Both uplinks are AF_PACKET sockets on a veth pair, or AF_XDP ones (`XDP`). The right namespace's kernel answers too: to the left engine it is
a host on the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.image import STORAGE
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import vhost_user
from tests.vm.lab.qemu import Guest

LINK = "vmqw"
HOST_MAC, HOST4 = "02:00:00:00:00:fe", "10.0.0.254"
MACS = {"a": ("52:54:00:00:00:01", "52:54:00:00:00:03"), "b": ("52:54:00:00:00:02", "52:54:00:00:00:04")}
FCOE = '["0e:fc:00:00:00:00/24", "0e:fd:00:00:00:00/24"]'


PACKET, XDP = 'kind = "packet"', 'kind = "xdp"\nprepared = true'


@dataclass(frozen=True)
class Wire:
    """The whole set-up."""

    left: Namespace
    right: Namespace
    engines: dict[str, EngineProcess]
    a: Guest
    b: Guest


def configuration(name: str, uplink: str, placement: str) -> str:
    """One engine's configuration: guest `name` with an untagged port and one in VLAN 10."""
    untagged, tagged = MACS[name]
    return f"""
[uplink.wire]
{uplink}
device = "{LINK}"
[vm.{name}]
socket = "{{folder}}/{name}.sock"
uplink = "wire"
mac = "{untagged}"
placement = "{placement}"
learn = {FCOE}
[vm.{name}10]
socket = "{{folder}}/{name}10.sock"
uplink = "wire"
mac = "{tagged}"
placement = "{placement}"
vlan = 10
"""


@contextmanager
def wire(folder: Path, uplink: str = PACKET, placement: str = "switched") -> Iterator[Wire]:
    """Both engines and both guests, running."""
    with Namespace("left") as left, Namespace("right") as right:
        left.veth(LINK, right, LINK)
        right.run("ip", "link", "set", LINK, "address", HOST_MAC)
        right.address(LINK, f"{HOST4}/24")
        folders = {name: folder / name for name in MACS}
        for place in folders.values():
            place.mkdir()
        with (
            EngineProcess(folders["a"], configuration("a", uplink, placement), left) as engine_a,
            EngineProcess(folders["b"], configuration("b", uplink, placement), right) as engine_b,
            _guest("a", 1, folders["a"]) as a,
            _guest("b", 2, folders["b"]) as b,
        ):
            a.ready()
            b.ready()
            yield Wire(left, right, {"a": engine_a, "b": engine_b}, a, b)


def _guest(name: str, number: int, folder: Path) -> Guest:
    untagged, tagged = MACS[name]
    nics = [
        vhost_user(folder / f"{name}.sock", untagged, f"10.0.0.{number}/24", f"fd00::{number}/64"),
        vhost_user(folder / f"{name}10.sock", tagged, f"10.1.0.{number}/24", f"fd01::{number}/64"),
    ]
    return Guest(name, nics, image=STORAGE)
