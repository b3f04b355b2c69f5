# SPDX-License-Identifier: Apache-2.0
"""vmq doctor --fix on devices, settings and threads of a network namespace: found, fixed, clear, taken back, found again.

The doctor is a process inside, with the /sys of the namespace. Nothing outside is changed: root's list of fixes lies in a
directory of the test, which is mounted for that process alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.live import Live
from tests.vm.lab.netns import Namespace
from vmq.config import load

pytestmark = pytest.mark.root
WEB = "52:54:00:00:00:01"


class Wire:
    """A namespace with a veth pair, a configuration on its end, and vmq doctor as a process inside."""

    def __init__(self, inside: Namespace, folder: Path) -> None:
        self.inside, self.folder, self.file = inside, folder, folder / "vmq.toml"
        inside.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        inside.up("v0")
        inside.up("v1")

    def write(self, uplink: str, vm: str = "") -> None:
        engine = f'[engine]\napi = "{self.folder}/api.sock"\nprocessors = "{max(os.sched_getaffinity(0))}"\n'
        self.file.write_text(f'{engine}[uplink.lan]\n{uplink}[vm.web]\nuplink = "lan"\nmac = "{WEB}"\n{vm}')

    def doctor(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.inside.command([sys.executable, "-m", "vmq", "doctor", *words, "--config", str(self.file)]),
            capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip

    def cycle(self, code: str, look: Callable[[], object], *more: str) -> tuple[object, object, object]:
        """Found, fixed, clear, undone, found again; what `look` sees before, between and after."""

        def status() -> set[str]:
            records = json.loads(self.doctor(code, "--json", *more).stdout)
            return {one["status"] for one in records}

        states = [look()]
        assert "found" in status()
        done = self.doctor(code, "--fix", "--yes", *more)
        assert ": fixed\n" in done.stdout, done.stdout + done.stderr
        states.append(look())
        assert "found" not in status()
        done = self.doctor("--undo", "--yes", *more)
        assert done.stdout.endswith(": undone\n"), done.stdout + done.stderr
        states.append(look())
        assert "found" in status()
        assert (self.folder / "lib/vmq/doctor.json").read_text().strip() == "[]"
        return states[0], states[1], states[2]


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:

    with Namespace("host") as inside:
        made = Wire(inside, tmp_path)
        state = tmp_path / "lib"
        state.mkdir()
        command = inside.command
        script = 'mount --bind "$0" /var/lib && exec "$@"'
        monkeypatch.setattr(inside, "command", lambda argv: command(["sh", "-c", script, str(state), *argv]))
        yield made


PACKET = 'kind = "packet"\ndevice = "v0"\n'


def test_d13_tags_of_a_real_device(wire: Wire) -> None:
    """veth takes tags off, unless somebody told it not to."""
    wire.write(PACKET, "vlan = 10\n")
    wire.inside.run("ethtool", "-K", "v0", "rxvlan", "off")
    told = json.loads(wire.doctor("D13", "--fix", "--yes", "--json").stdout)
    assert told["plan"][0]["back"] == ["ethtool -K v0 rx-vlan-hw-parse off"]
    wire.doctor("--undo", "--yes")

    def tags() -> str:
        return next(
            line for line in wire.inside.run("ethtool", "-k", "v0").splitlines() if "rx-vlan-offload" in line
        )

    assert wire.cycle("D13", tags) == ("rx-vlan-offload: off", "rx-vlan-offload: on", "rx-vlan-offload: off")


def test_d15_a_device_of_the_host_with_the_vms_address(wire: Wire) -> None:
    """ip link set, with the address of before as the way back."""
    wire.write(PACKET)
    wire.inside.run("ip", "link", "set", "v0", "address", WEB)

    told = json.loads(wire.doctor("D15", "--fix", "--yes", "--json").stdout)
    assert told["plan"][0]["back"] == [f"ip link set v0 address {WEB}"]
    assert [one["status"] for one in told["results"]] == ["fixed"]
    assert json.loads(wire.doctor("--undo", "--yes", "--json").stdout)["result"]["status"] == "undone"

    before, between, after = wire.cycle("D15", lambda: wire.inside.mac("v0"))
    assert (before, after) == (WEB, WEB)
    assert between == "52:54:00:00:00:02"


def test_d28_a_bridge_that_takes_shorter_frames(wire: Wire) -> None:
    """The key of the configuration follows the bridge."""
    wire.inside.run("ip", "link", "add", "br0", "mtu", "1400", "type", "bridge")
    wire.write('kind = "tap"\ndevice = "t0"\nbridge = "br0"\n')

    states = wire.cycle("D28", lambda: load(wire.file).uplinks["lan"].mtu)
    assert states == (None, 1400, None)


def test_d18_merged_frames_are_no_longer_merged(wire: Wire) -> None:
    """What was counted before the device was told is past."""
    wire.write(PACKET)
    wire.inside.run("ethtool", "-K", "v0", "gro", "on")
    row = {"name": "lan", "kind": "packet", "device": "v0", "state": "up", "segmented": 7}

    def merges() -> bool:
        return "generic-receive-offload: on" in wire.inside.run("ethtool", "-k", "v0")

    with Live(wire.folder / "api.sock", wire.file, uplinks=lambda: [row], vms=list):
        assert wire.cycle("D18", merges) == (True, False, True)


def test_d09_a_device_that_is_down(wire: Wire) -> None:
    """The engine's row says what the device says."""
    wire.write(PACKET)
    wire.inside.run("ip", "link", "set", "v0", "down")

    def up() -> bool:
        (shown,) = json.loads(wire.inside.run("ip", "-json", "link", "show", "v0"))
        return "UP" in shown["flags"]

    def rows() -> list[dict[str, Any]]:
        return [{"name": "lan", "kind": "packet", "device": "v0", "state": "up" if up() else "down"}]

    with Live(wire.folder / "api.sock", wire.file, uplinks=rows, vms=list):
        assert wire.cycle("D09", up) == (False, True, False)


def test_d06_a_thread_that_was_moved(wire: Wire) -> None:
    """Back to its processor, and away again as it was."""
    wire.write(PACKET)
    every, last = sorted(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    if len(every) < 2:
        pytest.skip("one processor: nowhere to move to")
    with subprocess.Popen(["sleep", "100"]) as sleeper:

        def rows() -> list[dict[str, Any]]:
            effective = sorted(os.sched_getaffinity(sleeper.pid))
            return [{"cpu": last, "effective": effective, "thread": sleeper.pid}]

        with Live(wire.folder / "api.sock", wire.file, processors=rows, vms=list):
            states = wire.cycle("D06", lambda: sorted(os.sched_getaffinity(sleeper.pid)))
        sleeper.kill()
    assert states == (every, [last], every)


def test_d12_a_vlan_device_that_takes_the_tag_off(wire: Wire) -> None:
    """The VM waited for a tag that its uplink never gives."""
    made = wire.inside.run(
        "ip", "link", "add", "link", "v0", "name", "v0.10", "type", "vlan", "id", "10", check=False
    )
    if made:
        pytest.skip("needs VLAN devices")
    wire.write('kind = "packet"\ndevice = "v0.10"\n', "vlan = 10\n")

    assert wire.cycle("D12", lambda: load(wire.file).vms["web"].vlan) == (10, None, 10)


def test_d33_the_hosts_firewall_on_bridged_frames(wire: Wire) -> None:
    """A setting of the namespace; the host's own is not ours to change."""
    setting = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")

    def reads() -> str:
        return wire.inside.run("cat", str(setting), check=False).strip()

    before = setting.read_text() if setting.exists() else ""
    if not setting.exists() or "No such" in reads():
        pytest.skip("bridged frames pass no firewall in a namespace of this kernel")
    wire.inside.run("ip", "link", "add", "br0", "type", "bridge")
    wire.inside.sysctl("net/bridge/bridge-nf-call-iptables", 1)
    wire.write('kind = "tap"\ndevice = "t0"\nbridge = "br0"\n')

    assert wire.cycle("D33", reads) == ("1", "0", "1")
    assert setting.read_text() == before
