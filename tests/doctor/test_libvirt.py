# SPDX-License-Identifier: Apache-2.0
"""Domains as virsh dumpxml prints them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmq.cli import snippet
from vmq.config import parse as parse_config
from vmq.doctor import libvirt
from vmq.doctor.machines import Nic
from vmq.errors import ConfigError

DOMAIN = """<domain type='kvm'>
  <name>web</name>
  <vcpu placement='static'>4</vcpu>
  {memory}
  <devices>
    <interface type='vhostuser'>
      <mac address='52:54:00:00:00:AB'/>
      <source type='unix' path='/run/vmq/web.sock' mode='server'/>
      <model type='virtio'/>
      <driver queues='4' rx_queue_size='512'><host mrg_rxbuf='off'/></driver>
      <mtu size='1400'/>
    </interface>
    <interface type='bridge'><source bridge='br0'/></interface>
  </devices>
</domain>
"""
SHARED = "<memoryBacking><access mode='shared'/></memoryBacking>"
CELL = "<cell id='{}' cpus='0' memory='1' unit='GiB' memAccess='{}'/>"


def domain(tmp_path: Path, text: str) -> str:
    path = tmp_path / "web.xml"
    path.write_text(text)
    return str(path)


def test_a_domain(tmp_path: Path) -> None:
    found = libvirt.load(domain(tmp_path, DOMAIN.format(memory=SHARED)))

    assert (found.name, found.where, found.shared, found.vcpus) == ("web", str(tmp_path / "web.xml"), True, 4)
    assert found.nics[0] == Nic(
        backend="vhost-user",
        socket="/run/vmq/web.sock",
        server=True,
        mac="52:54:00:00:00:ab",
        queues=4,
        multiqueue=True,
        rx_queue_size=512,
        mtu=1400,
        mergeable=False,
    )
    assert (found.nics[1].backend, found.nics[1].mac) == ("tap", None)


@pytest.mark.parametrize(
    ("memory", "shared"),
    [
        ("", False),
        ("<memoryBacking><hugepages/></memoryBacking>", False),
        ("<memoryBacking><access mode='private'/></memoryBacking>", False),
        (f"<cpu><numa>{CELL.format(0, 'shared')}</numa></cpu>", True),
        (f"<cpu><numa>{CELL.format(0, 'shared')}{CELL.format(1, 'private')}</numa></cpu>", False),
        (f"{SHARED}<cpu><numa><cell id='0' cpus='0' memory='1'/></numa></cpu>", True),
    ],
)
def test_memory(tmp_path: Path, memory: str, shared: bool) -> None:
    """For all of it, or cell by cell."""
    assert libvirt.load(domain(tmp_path, DOMAIN.format(memory=memory))).shared == shared


def test_what_snippet_prints_is_a_guest_without_mistakes(tmp_path: Path) -> None:
    config = parse_config('[vm.web]\nmac = "52:54:00:00:00:01"\n', "/etc/vmq.toml")
    text = snippet.libvirt("web", config.vms["web"], 1, None, "1G", tcg=False)
    memory, interface = text.split("<interface", 1)

    found = libvirt.load(
        domain(tmp_path, f"<domain>{memory}<devices><interface{interface}</devices></domain>")
    )

    assert (found.shared, found.nics[0].socket) == (True, config.vms["web"].socket)
    assert (found.nics[0].server, found.nics[0].rx_queue_size) == (False, 1024)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("nonsense", "is not XML"),
        ("<network/>", "describes a network, not a domain"),
        ("<!DOCTYPE d [<!ENTITY a 'b'>]><domain/>", "declares entities"),
        (" " * (libvirt.SIZE_MAX + 1), "is too large"),
    ],
)
def test_what_is_no_domain_is_refused_in_words(tmp_path: Path, text: str, wrong: str) -> None:
    """The request is wrong: exit code 2."""
    with pytest.raises(ConfigError, match=wrong) as refused:
        libvirt.load(domain(tmp_path, text))
    assert refused.value.exit_code == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        libvirt.load(str(tmp_path / "none.xml"))
