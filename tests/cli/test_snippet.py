# SPDX-License-Identifier: Apache-2.0
"""vmq snippet: the exact lines, literally."""

from __future__ import annotations

import shlex
from xml.etree import ElementTree as ET

import pytest

QEMU = """\
# VM "web": vmq listens, QEMU connects. vmq calls it mode "listen", libvirt mode "client" after what QEMU is.
# Guest memory must be shared, or the socket connects and no frame moves.
-m 2G -object memory-backend-memfd,id=vmqmem,size=2G,share=on \\
-machine q35,memory-backend=vmqmem \\
-chardev socket,id=vmq-web,path=/run/vmq/web.sock,reconnect=1 \\
-netdev vhost-user,id=vmqn-web,chardev=vmq-web,queues=2 \\
-device virtio-net-pci,netdev=vmqn-web,mac=52:54:00:00:00:01,mq=on,vectors=6,\
rx_queue_size=1024,tx_queue_size=1024,host_mtu=1400
"""
LIBVIRT = """\
<!-- VM "web": vmq listens, QEMU connects. vmq calls it mode "listen", libvirt mode "client" after what QEMU is. -->
<!-- Guest memory must be shared, or the socket connects and no frame moves. -->
<memory unit='GiB'>1</memory>
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<interface type='vhostuser'>
  <mac address='52:54:00:00:00:01'/>
  <source type='unix' path='/run/vmq/web.sock' mode='client'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <model type='virtio'/>
  <driver queues='2' rx_queue_size='1024' tx_queue_size='1024'/>
  <mtu size='1400'/>
  <alias name='ua-vmq-web'/>
</interface>
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vmq.toml"
    path.write_text(
        "[uplink.lan]\nkind = 'tap'\ndevice = 't0'\nmtu = 1400\n"
        "[vm.web]\nuplink = 'lan'\nmac = ['52:54:00:00:00:01', '52:54:00:00:00:11']\nqueue_pairs = 2\n"
        "[vm.'d.b']\nmode = 'connect'\nmac = '52:54:00:00:00:02'\nsocket = \"/tmp/a,b 'c'.sock\"\n",
        encoding="utf-8",
    )
    return str(path)


def test_qemu_has_shared_memory_vectors_and_reconnects(vmq, file) -> None:
    """vectors = 2 × queue pairs + 2."""
    assert vmq("snippet", "qemu", "web", "--config", file, "--memory", "2G") == (0, QEMU, "")


def test_qemu_without_kvm_has_no_vectors_and_says_why(vmq, file) -> None:
    """QEMU 7.2 under TCG crashes with them."""
    out = vmq("snippet", "qemu", "web", "--config", file, "--tcg")[1]

    assert ",vectors=0," in out
    assert "# No MSI-X vectors: QEMU 7.2 without KVM crashes with them. With KVM leave out --tcg.\n" in out


def test_qemu_that_listens_is_the_server_and_paths_are_quoted(vmq, file) -> None:
    """A comma is doubled for QEMU, and the word quoted for the shell."""
    out = vmq("snippet", "qemu", "d.b", "--config", file)[1]
    words = shlex.split(out.replace("\\\n", " "), comments=True)

    assert 'libvirt mode "server"' in out
    assert words[words.index("-chardev") + 1] == "socket,id=vmq-d.b,path=/tmp/a,,b 'c'.sock,server=on"
    assert words[words.index("-netdev") + 1] == "vhost-user,id=vmqn-d.b,chardev=vmq-d.b,queues=1"
    assert words[words.index("-device") + 1] == (
        "virtio-net-pci,netdev=vmqn-d.b,mac=52:54:00:00:00:02,vectors=4,rx_queue_size=1024,tx_queue_size=1024"
    )


def test_libvirt_has_shared_memory_and_both_mode_words(vmq, file) -> None:
    """The long form, for libvirt before 11.1 too."""
    assert vmq("snippet", "libvirt", "web", "--config", file) == (0, LIBVIRT, "")


@pytest.mark.parametrize("more", [[], ["--tcg"]])
def test_libvirt_is_xml_whatever_the_path_and_the_name(vmq, file, more: list[str]) -> None:
    """No dot in an alias, no quote in an attribute, no -- in a comment."""
    out = vmq("snippet", "libvirt", "d.b", "--config", file, *more)[1]
    domain = ET.fromstring(f"<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>{out}</domain>")
    source = domain.find("interface/source")

    assert source is not None
    assert source.attrib == {"type": "unix", "path": "/tmp/a,b 'c'.sock", "mode": "server"}
    assert source.find("reconnect") is None
    assert [alias.attrib["name"] for alias in domain.iter("alias")] == ["ua-vmq-d_b"]
    assert ("name='vectors' type='unsigned' value='0'" in out) is bool(more)


def test_the_qmp_socket_of_the_configuration_is_made_and_the_device_named(vmq, tmp_path) -> None:
    """What `qmp` and `qmp_nic` name has to be there."""
    path = tmp_path / "vmq.toml"
    path.write_text(
        "[vm.web]\nmac = '52:54:00:00:00:01'\nqmp = '/r/a,b.qmp'\nqmp_nic = 'net0'\n", encoding="utf-8"
    )

    code, out, _ = vmq("snippet", "qemu", "web", "--config", str(path))
    words = shlex.split(out.replace("\\\n", " "), comments=True)
    xml = vmq("snippet", "libvirt", "web", "--config", str(path))[1]
    domain = ET.fromstring(f"<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>{xml}</domain>")

    assert code == 0
    assert words[words.index("-qmp") + 1] == "unix:/r/a,,b.qmp,server=on,wait=off"
    assert words[words.index("-device") + 1].startswith("virtio-net-pci,netdev=vmqn-web,id=net0,mac=")
    assert "# The QMP socket is for vmq alone: QEMU serves one client at a time.\n" in out
    (command,) = domain.findall("{http://libvirt.org/schemas/domain/qemu/1.0}commandline")
    assert [arg.attrib["value"] for arg in command] == ["-qmp", "unix:/r/a,,b.qmp,server=on,wait=off"]
    assert '<!-- libvirt gives the device an id of its own: set qmp_nic = "ua-vmq-web" -->' in xml


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["db"], "{file}: there is no [vm.db]. Remedy: Name one of the file: web, d.b"),
        (
            ["web", "--queues", "3"],
            (
                "vmq snippet --queues: 3 asked for, but [vm.web] offers 2. "
                "Remedy: Give a number from 1 to 2, or raise its queue_pairs"
            ),
        ),
        (
            ["web", "--queues", "-1"],
            (
                "vmq snippet --queues: -1 asked for, but [vm.web] offers 2. "
                "Remedy: Give a number from 1 to 2, or raise its queue_pairs"
            ),
        ),
        (
            ["web", "--memory", "lots"],
            (
                'vmq snippet: argument --memory: "lots" is not a size: write it as 512M or 2G. '
                "Remedy: See vmq snippet --help"
            ),
        ),
    ],
)
def test_what_cannot_be_written_is_refused(vmq, file, words: list[str], line: str) -> None:
    """Exit 2, one line."""
    assert vmq("snippet", "qemu", *words, "--config", file) == (2, "", line.format(file=file) + "\n")
