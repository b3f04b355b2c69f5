# SPDX-License-Identifier: Apache-2.0
"""The README's first real VM: its configuration, the lines that `vmq snippet` prints, a ping."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import Nic
from tests.vm.lab.qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(200)]
README = Path(__file__).parents[2] / "README.md"


def readme_configuration(folder: Path) -> str:
    """The block of the README, with sockets in a folder of the test."""
    (block,) = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    return str(block).replace("/run/vmq", str(folder))


def nic_of(lines: str) -> Nic:
    """The network device that printed lines describe."""
    words = shlex.split(lines.replace("\\\n", " "), comments=True)
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    device = pairs["-device"].split(",")
    (mac,) = [part.removeprefix("mac=") for part in device if part.startswith("mac=")]
    netdev = next(part.removeprefix("netdev=") for part in device if part.startswith("netdev="))
    rest = tuple(part for part in device[1:] if not part.startswith(("mac=", "netdev=")))
    arguments = (
        "-chardev",
        pairs["-chardev"],
        "-netdev",
        pairs["-netdev"].replace(f"id={netdev}", "id={id}"),
    )
    assert "share=on" in pairs["-object"], "guest memory would not be shared"
    return Nic(mac, arguments, rest, ("10.0.0.1/24",))


def test_first_vm_of_the_readme_answers_a_ping(tmp_path: Path) -> None:
    with Namespace("first") as host, EngineProcess(tmp_path, readme_configuration(tmp_path), host) as engine:
        host.address("vmqtap0", "10.0.0.254/24")
        command = [
            sys.executable,
            "-m",
            "vmq",
            "snippet",
            "qemu",
            "web",
            "--config",
            str(engine.file),
            "--tcg",
        ]
        lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
        with Guest("web", [nic_of(lines)]) as guest:
            guest.ready()
            host.run("ping", "-c", "3", "-i", "0.2", "-W", "2", "10.0.0.1")
            row = engine.show("vms")["web"]
            explained = engine.ask("explain", mac="52:54:00:00:00:01")

    assert row["state"] == "running"
    assert row["last_error"] is None
    assert explained["vm"] == "web"
