# SPDX-License-Identifier: Apache-2.0
"""Mistakes of QEMU's command line, made by processes with such a line; their threads are pinned for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.running import FIRST_CPU, until
from tests.mistakes.made import A, B, Doctor, Made, device, qemu, seen, shared, vms

SEVERAL = f'[vm.a]\nmac = "{A}"\nqueue_pairs = 4\n'


@pytest.fixture
def folder(before: Doctor) -> Path:
    """Where the sockets of its VM ports are."""
    folder = before.file.parent
    before.file.write_text(f'[engine]\napi = "{folder}/api.sock"\nprocessors = "{FIRST_CPU}"\n' + SEVERAL)
    return folder


def test_d05_a_vcpu_on_the_processor_of_a_worker(before: Doctor, folder: Path) -> None:
    """Two threads pinned there by taskset; of a thread that may run anywhere nothing is said."""
    words = (*shared(), *device(folder, "a", A))
    with qemu("pinned", *words, vcpus=((FIRST_CPU,), (FIRST_CPU,))):
        found = [one for one in before.all("D05") if "pinned" in str(one["evidence"])]
    assert [one["subject"] for one in found] == [f"processor {FIRST_CPU}"] * 2
    assert found[0]["evidence"][0]["value"] == str(FIRST_CPU)
    with qemu("free", *words):
        assert "free" not in str([one["evidence"] for one in before.all("D05")])


@pytest.mark.parametrize(
    ("words", "seen_there"),
    [
        ({"memory": shared("memory-backend-ram")}, "guest memory is private"),
        ({"netdev": ",server=on"}, "QEMU listens too"),
        ({"socket": "/run/elsewhere.sock"}, "path=/run/elsewhere.sock"),
    ],
)
def test_d06_qemu_and_vmq_do_not_meet(before: Doctor, folder: Path, words: dict, seen_there: str) -> None:
    """Memory of its own, both sides waiting, another socket."""
    memory = words.pop("memory", shared())
    with qemu("a", *memory, *device(folder, "a", A, **words)):
        found = before.found("D06")["VM a"]
    assert found["severity"] == "error"
    assert seen_there in seen(found).values()
    with qemu("a", *shared(), *device(folder, "a", A)):
        assert "VM a" not in before.found("D06")


def test_d15_two_guests_of_one_address(before: Doctor, folder: Path) -> None:
    """One on vmq, its clone on another switch."""
    with (
        qemu("a", *shared(), *device(folder, "a", A)),
        qemu("clone", *shared(), *device(folder, "a", A, socket="/run/other.sock")),
    ):
        (found,) = [one for subject, one in before.found("D15").items() if "clone" in subject]
    assert set(seen(found).values()) == {f"mac={A}"}


def test_d16_an_address_that_only_qemu_knows(before: Doctor, folder: Path) -> None:
    with qemu("a", *shared(), *device(folder, "a", B)):
        assert f"mac={B}" in seen(before.found("D16")["VM a"]).values()
    with qemu("a", *shared(), *device(folder, "a", A)):
        assert "VM a" not in before.found("D16")


def test_d18_mergeable_buffers_switched_off(before: Doctor, folder: Path) -> None:
    with qemu("a", *shared(), *device(folder, "a", A, more=",mrg_rxbuf=off")):
        assert "mrg_rxbuf=off" in seen(before.found("D18")["VM a"]).values()


def test_d20_a_passthrough_device_carries_the_traffic(before: Doctor, folder: Path) -> None:
    """A failover pair: the virtio device waits until the other one is gone."""
    pair = (
        *device(folder, "a", A, more=",failover=on,id=net0"),
        "-device",
        "vfio-pci,host=01:10.0,failover_pair_id=net0",
    )
    with qemu("a", *shared(), *pair):
        found = before.found("D20")["VM a"]
    assert "failover=on, and a device of the host's" in seen(found).values()
    with qemu("a", *shared(), *device(folder, "a", A, more=",failover=on,id=net0")):
        assert "VM a" not in before.found("D20")


def test_d21_more_receive_queues_than_vcpus(before: Doctor, folder: Path) -> None:
    """One vCPU with one receive queue is no mistake."""
    queues = device(folder, "a", A, queues=4, more=",mq=on,vectors=10")
    with qemu("a", *shared(), *queues, "-smp", "1"):
        assert "queues=4, 1 vCPUs" in seen(before.found("D21")["VM a"]).values()
    with qemu("a", *shared(), *queues, "-smp", "4"):
        assert "VM a" not in before.found("D21")
    with qemu("a", *shared(), *device(folder, "a", A), "-smp", "1"):
        assert "VM a" not in before.found("D21")


@pytest.mark.parametrize(
    ("queues", "more", "seen_there"),
    [(4, "", "mq=off"), (4, ",mq=on,vectors=4", "vectors=4"), (8, ",mq=on,vectors=18", "queues=8")],
)
def test_d24_what_several_receive_queues_need(
    before: Doctor, folder: Path, queues: int, more: str, seen_there: str
) -> None:
    """Each capability withheld in turn."""
    with qemu("a", *shared(), *device(folder, "a", A, queues=queues, more=more)):
        assert seen_there in seen(before.found("D24")["VM a"]).values()
    with qemu("a", *shared(), *device(folder, "a", A, queues=4, more=",mq=on,vectors=10")):
        assert "VM a" not in before.found("D24")


def test_d24_a_driver_that_runs_fewer_than_it_was_given(engine: Made, doctor: Doctor) -> None:
    """QEMU offers four; the guest at the socket starts one, then all."""
    engine.takes(SEVERAL)
    with qemu("a", *shared(), *device(engine.folder, "a", A, queues=4, more=",mq=on,vectors=10")):
        with engine.guest("a", A):
            until(lambda: engine.show("vms", "a")["queues_running"] == 1)
            assert seen(doctor.found("D24")["VM a"]) == {"vmq show vms: queues_running": "1"}
        until(lambda: engine.show("vms", "a")["state"] == "listening")
        with engine.guest("a", A, queues=4):
            until(lambda: engine.show("vms", "a")["queues_running"] == 4)
            assert "VM a" not in doctor.found("D24")


def test_d28_a_guest_that_was_told_more_than_its_port_takes(before: Doctor, folder: Path) -> None:
    with qemu("a", *shared(), *device(folder, "a", A, more=",host_mtu=9000")):
        assert "host_mtu=9000" in seen(before.found("D28")["VM a"]).values()
    with qemu("a", *shared(), *device(folder, "a", A, more=",host_mtu=1500")):
        assert "VM a" not in before.found("D28")


def test_d29_a_receive_ring_of_qemus_default(before: Doctor, folder: Path) -> None:
    """The last of two says wins, as in QEMU."""
    with qemu("a", *shared(), *device(folder, "a", A, more=",rx_queue_size=256")):
        assert "rx_queue_size=256" in seen(before.found("D29")["VM a"]).values()
    with qemu("a", *shared(), *device(folder, "a", A)):
        assert "VM a" not in before.found("D29")


def test_d15_two_vms_of_one_address_on_one_uplink_are_refused(before: Doctor, folder: Path) -> None:
    """In two VLANs it is no mistake."""
    with before.file.open("a") as file:
        file.write(vms(b=A))
    assert "[vm.b] mac" in before.refused()
