# SPDX-License-Identifier: Apache-2.0
"""Guest memory that is truncated under the engine: one VM port stops, the process lives (H14, H20.9, H28.4)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.dataplane.rig import A, B, Rig
from vmq import linux
from vmq.abi.linux import siginfo_fault
from vmq.dataplane import reasons
from vmq.dataplane.faults import contain, handle
from vmq.jit import address_of, at, int64

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        for mac in (A, B):
            rig.vm(mac)
        rig.publish()
        yield rig


@pytest.fixture
def mapped(rig: Rig) -> Iterator[int]:
    """Two pages of guest memory of VM port 1, full of ones."""
    address = linux.map_private(2 * linux.PAGE)
    at(address, 2 * linux.PAGE, np.uint8)[:] = 1
    rig.segment.add_mapping(0, address - (1 << 20), 1 << 12)
    rig.segment.add_mapping(1, address, 2 * linux.PAGE)
    yield address
    rig.segment.drop_mapping(address)
    linux.unmap(address, 2 * linux.PAGE)


def siginfo(address: int) -> np.ndarray:
    """A siginfo_t of 128 bytes, as the kernel gives it to a handler."""
    block = np.zeros(128, np.uint8)
    block[: siginfo_fault.itemsize].view(siginfo_fault)[0]["address"] = address
    return block


@pytest.mark.parametrize("offset", [0, linux.PAGE, 2 * linux.PAGE - 1])
def test_the_mapping_around_a_fault_becomes_zeros_and_its_port_stops(rig, mapped, offset):
    """All of it: what lies behind a file's new end is gone too."""
    information = siginfo(mapped + offset)
    handle(int64(signal.SIGBUS), int64(address_of(information)), int64(0))
    assert at(mapped, 2 * linux.PAGE, np.uint8).tobytes() == bytes(2 * linux.PAGE)
    assert [vm.fault for vm in rig.vms] == ["none", "memory_gone"]
    assert os.eventfd_read(rig.segment.control_fd) == 1


@pytest.mark.parametrize("offset", [-1, 2 * linux.PAGE])
def test_a_fault_outside_guest_memory_is_not_contained(rig, mapped, offset):
    scratch = np.zeros(8, np.uint8)
    assert not contain(int64(mapped + offset), int64(address_of(scratch)))
    assert at(mapped, 2 * linux.PAGE, np.uint8).tobytes() == b"\x01" * 2 * linux.PAGE
    assert all(vm.fault == "none" for vm in rig.vms)


def test_the_first_fault_of_a_port_stays(rig, mapped):
    rig.segment.rows["port_state"][1]["fault"] = reasons.CHAIN_LOOP
    scratch = np.zeros(8, np.uint8)
    assert contain(int64(mapped), int64(address_of(scratch)))
    assert rig.vms[1].fault == "chain_loop"


def test_memory_is_found_whichever_engine_it_belongs_to(rig, mapped):
    """Several engines in one process: tests, and a demo."""
    with Rig() as second:
        scratch = np.zeros(8, np.uint8)
        assert contain(int64(mapped), int64(address_of(scratch)))
        assert rig.vms[1].fault == "memory_gone"
        assert not second.segment.rows["port_state"]["fault"].any()


def caught(number: int) -> bool:
    """Whether this process has a handler for the signal, as the kernel sees it."""
    status = Path("/proc/self/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(mask >> (number - 1) & 1)


def test_a_fault_of_our_own_gets_the_default_action_back(rig):
    """The access is repeated then, and ends the process: a wrong address of ours must never be hidden."""
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert caught(signal.SIGUSR2)
        information = siginfo(64)
        handle(int64(signal.SIGUSR2), int64(address_of(information)), int64(0))
        assert not caught(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)


SCRIPT = """
import mmap, os, signal, sys
import numpy as np
from tests.dataplane.rig import A, B, C, Rig, frame
from vmq import linux
from vmq.dataplane import faults
from vmq.jit import address_of

kind = sys.argv[1]
linux.install_handler(signal.SIGBUS, faults.on_sigbus())
with Rig() as rig:
    wire = rig.uplink(frames=[frame(A, C), frame(B, C)] * 64, laps=0)
    victim, neighbour = rig.vm(A, uplink=wire), rig.vm(B, uplink=wire, size=256)
    size = len(victim.memory._host[0])
    size += -size % linux.PAGE
    file = os.memfd_create("guest")
    os.ftruncate(file, size)
    shared = np.frombuffer(mmap.mmap(file, size), np.uint8)[: len(victim.memory._host[0])]
    shared[:] = victim.memory._host[0]
    victim.memory._host[0] = shared
    rig.segment.add_mapping(victim.number, address_of(shared), size)
    victim.post(32)
    neighbour.post(256, 128)
    rig.publish()
    rig.step()
    os.ftruncate(file, 0 if kind == "all" else linux.PAGE)
    if kind == "own":
        ours = os.memfd_create("ours")
        os.ftruncate(ours, linux.PAGE)
        bytes_of_ours = np.frombuffer(mmap.mmap(ours, linux.PAGE), np.uint8)
        os.ftruncate(ours, 0)
        bytes_of_ours.sum()
    for _ in range(3):
        rig.step()
    assert victim.fault == "memory_gone", victim.fault
    assert neighbour.fault == "none"
    assert len(neighbour.received()) == 128
    assert victim.drops().keys() >= {"to_guest_not_running"}
    rig.vms.remove(victim)
    victim.memory._host.clear()
print("alive")
"""


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["all", "tail"])
def test_a_truncated_file_stops_its_port_while_the_neighbour_goes_on(kind):
    """A real SIGBUS in a kernel, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.compiled
def test_a_truncated_file_of_our_own_ends_the_process():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "own"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == -signal.SIGBUS
    assert "alive" not in done.stdout
