# SPDX-License-Identifier: Apache-2.0
"""Guests from command lines and from /proc."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.doctor.hosts import record
from vmq.cli import snippet
from vmq.config import parse
from vmq.doctor.machines import Nic, of_words, processes

LIBVIRT = [
    "-name", "guest=db,debug-threads=on",
    "-object", '{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"size":1073741824}',
    "-machine", "pc-q35-7.2,usb=off,memory-backend=pc.ram",
    "-smp", "2,sockets=2,cores=1,threads=1",
    "-chardev", "socket,id=charnet0,path=/run/vmq/db.sock,server=on",
    "-netdev", '{"type":"vhost-user","chardev":"charnet0","queues":2,"id":"hostnet0"}',
    "-device", '{"driver":"virtio-net-pci","mq":true,"vectors":6,"rx_queue_size":512,"host_mtu":1400,"netdev":"hostnet0","mac":"52:54:00:00:00:AA"}',
]  # fmt: skip


def test_a_command_line_of_libvirt() -> None:
    found = of_words(LIBVIRT, "x")

    assert (found.name, found.shared, found.vcpus, found.passthrough) == ("db", True, 2, False)
    assert found.nics == (
        Nic(
            backend="vhost-user",
            socket="/run/vmq/db.sock",
            server=True,
            mac="52:54:00:00:00:aa",
            queues=2,
            multiqueue=True,
            vectors=6,
            rx_queue_size=512,
            mtu=1400,
        ),
    )


def test_what_snippet_prints_is_a_guest_without_mistakes() -> None:
    """The two must agree on what is right."""
    config = parse('[vm.web]\nmac = "52:54:00:00:00:01"\nqueue_pairs = 2\n', "/etc/vmq.toml")
    text = snippet.qemu("web", config.vms["web"], 2, 1400, "1G", tcg=False)
    lines = text.replace("\\\n", "").splitlines()
    words = shlex.split("\n".join(line for line in lines if not line.startswith("#")))

    found = of_words(words, "x")

    (nic,) = found.nics
    assert (found.shared, nic.socket, nic.server, nic.queues) == (True, config.vms["web"].socket, False, 2)
    assert (nic.vectors, nic.multiqueue, nic.rx_queue_size, nic.mtu) == (6, True, 1024, 1400)


def test_a_device_without_a_back_end_is_still_a_device() -> None:
    (nic,) = of_words(["-device", "virtio-net-pci,mac=52:54:00:00:00:01"], "x").nics

    assert (nic.backend, nic.socket, nic.rx_queue_size, nic.mtu) == ("", None, 256, None)


def proc(root: Path, pid: int, *words: str, **files: str) -> Path:
    return record(
        root, {f"{pid}/cmdline": "\0".join(words), **{f"{pid}/{name}": text for name, text in files.items()}}
    )


def test_qemu_processes_with_their_threads_and_nodes(tmp_path: Path) -> None:
    """vCPU threads by their names; pages of shared files by node."""
    maps = (
        "7f00 default file=/memfd:memory-backend-memfd\\040(deleted) dirty=3 N0=10 N1=300\n"
        "7e00 default anon=5 dirty=5 N0=5\n"
        "7d00 bind:1 file=/dev/hugepages/x huge N1=7 kernelpagesize_kB=2048"
    )
    proc(tmp_path, 7, "bash", "qemu-system-x86_64")
    proc(tmp_path, 812, "/usr/bin/qemu-system-x86_64", *LIBVIRT, numa_maps=maps)
    record(
        tmp_path / "812/task",
        {
            "812/comm": "qemu-system-x86", "812/status": "Cpus_allowed_list:\t0-7",
            "813/comm": "CPU 0/KVM", "813/status": "Name:\tCPU 0/KVM\nCpus_allowed_list:\t3",
            "814/comm": "CPU 1/TCG", "814/status": "Cpus_allowed_list:\t4-5",
        },
    )  # fmt: skip

    (found,) = processes(tmp_path)

    assert (found.name, found.where) == ("db", "812 (QEMU process)")
    assert found.pinned == ((3,), (4, 5))
    assert found.nodes == {0: 10, 1: 307}


def test_a_process_that_runs_here_is_found() -> None:
    """The real /proc, and a program that only calls itself QEMU."""
    name = f"vmq-doctor-{os.getpid()}"
    words = ["qemu-system-x86_64", "-c", "print(flush=True); input()", "-name", name, *LIBVIRT[2:]]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, executable=sys.executable, stdin=pipe, stdout=pipe) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()  # a process has no command line for a moment while it starts
            found = {machine.name: machine for machine in processes(Path("/proc"))}
        finally:
            child.communicate(b"\n", timeout=20)

    assert found[name].where == f"{child.pid} (QEMU process)"
    assert found[name].shared
    assert found[name].nics[0].socket == "/run/vmq/db.sock"


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    proc(tmp_path, 9, "qemu-system-x86_64")
    (tmp_path / "10").mkdir()

    (found,) = processes(tmp_path)

    assert (found.nics, found.pinned, found.nodes) == ((), (), {})
    assert list(processes(tmp_path / "none")) == []
