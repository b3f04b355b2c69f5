# SPDX-License-Identifier: Apache-2.0
"""vmq doctor on real QEMU processes and a real engine: mistakes that are made, and a guest without any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import Nic, vhost_user
from tests.vm.lab.qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(200)]
WEB, OTHER = "52:54:00:d0:c7:01", "52:54:00:d0:c7:02"  # no other guest of this folder has them
CODES = ("D06", "D15", "D16", "D18", "D20", "D21", "D24", "D28", "D29")
VM = f'[vm.web]\nsocket = "{{folder}}/web.sock"\nmac = "{WEB}"\nqueue_pairs = 2\n'


def doctor(*words: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and what was found by code."""
    command = [sys.executable, "-m", "vmq", "doctor", *CODES, "--json", *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(ran.stdout):
        if finding["status"] == "found":
            found.setdefault(finding["code"], []).append(finding)
    return ran.returncode, found


def config(folder: Path) -> str:
    path = folder / "vmq.toml"
    path.write_text(f'[engine]\napi = "{folder}/api.sock"\n' + VM.format(folder=folder))
    return str(path)


def process(nic: Nic, **options: Any) -> Guest:
    """QEMU alone: it waits for its back-end, and boots nothing."""
    return Guest("web", [nic], image=None, memory=64, **options)


def test_mistakes_of_a_command_line_are_found_while_it_waits(tmp_path: Path) -> None:
    """Private memory, another address, a larger MTU, a shallow ring, more queues than vCPUs, no mq."""
    nic = vhost_user(tmp_path / "web.sock", OTHER, queues=2, host_mtu=9000, mq="off", mrg_rxbuf="off")
    with process(nic, backend="memory-backend-ram"):
        code, found = doctor("--config", config(tmp_path))

    assert code == 1
    assert set(found) == {"D06", "D16", "D18", "D21", "D24", "D28", "D29"}
    assert {finding["subject"] for several in found.values() for finding in several} == {"VM web"}
    assert [finding["severity"] for finding in found["D06"]] == ["error"]
    assert found["D16"][0]["fix"]["command"].startswith(f'mac = "{OTHER}" in [vm.web]')
    assert found["D28"][0]["evidence"][0]["value"] == "host_mtu=9000"


def test_a_command_line_without_mistakes_has_no_findings(tmp_path: Path) -> None:
    nic = vhost_user(tmp_path / "web.sock", WEB, rx_queue_size=1024, host_mtu=1500)
    with process(nic):
        assert doctor("--config", config(tmp_path)) == (0, {})


def test_two_guests_with_one_address_are_found(tmp_path: Path) -> None:
    """A clone that was started from a copied command line, for another switch."""
    web = vhost_user(tmp_path / "web.sock", WEB, rx_queue_size=1024)
    twin = vhost_user(tmp_path / "other-switch.sock", WEB, rx_queue_size=1024)
    with process(web), Guest("twin", [twin], image=None, memory=64):
        code, found = doctor("--config", config(tmp_path))

    assert code == 1
    assert {entry["value"] for entry in found["D15"][0]["evidence"]} == {f"mac={WEB}"}


def test_a_running_guest_without_mistakes_has_no_findings(tmp_path: Path) -> None:
    """Booted, on a running engine: what is in effect is looked at, too."""
    nic = vhost_user(tmp_path / "web.sock", WEB, rx_queue_size=1024)
    with (
        Namespace("doctor") as host,
        EngineProcess(tmp_path, VM, host) as engine,
        Guest("web", [nic]) as guest,
    ):
        guest.ready()
        assert doctor("--config", str(engine.file)) == (0, {})
