# SPDX-License-Identifier: Apache-2.0
"""Mistakes that counters show: who gets how many frames, how long they are, and how they come."""

from __future__ import annotations

from pathlib import Path

from tests.cli.test_doctor import capture
from tests.engine.running import FIRST_CPU, PATIENCE, frame, until
from tests.mistakes.made import FEW, LAN, MEMORY, PCAP, STRANGER, A, B, C, Doctor, Made, seen, vms


def test_d08_more_vms_than_receive_queues(engine: Made, doctor: Doctor) -> None:
    """Three as busy as each other, one receive queue: a warning that names the two."""
    engine.takes(FEW + MEMORY + "count = 3000\nqueues = 1\n" + vms(LAN, a=A, b=B, c=C))
    for vm in ("a", "b", "c"):
        engine.offered(vm, 1000)

    found = doctor.found("D08")["uplink lan"]
    assert found["severity"] == "warning"
    without = [where for where in seen(found) if "offered_to_guest" in where]
    assert len(without) == 2
    assert found["fix"]["command"].startswith("queues = 3 in [uplink.lan]")
    assert doctor.statuses("D11") == {"clear"}, "nobody is idle"
    engine.changes(FEW + MEMORY + "count = 3000\nqueues = 3\n" + vms(LAN, a=A, b=B, c=C))
    assert doctor.clear("D08")


def test_d11_an_idle_vm_that_holds_the_receive_queue(engine: Made, doctor: Doctor, tmp_path: Path) -> None:
    """The first one has it by its weight; all frames are the other one's."""
    capture(tmp_path / "wire.pcap", *(frame(B, STRANGER, number) for number in range(300)))
    uplink = FEW + PCAP.format(tmp_path / "wire.pcap")
    engine.takes(uplink + "queues = 1\n" + vms(LAN, a=A) + vms(LAN + "weight = 50\n", b=B))
    engine.offered("b", 300)

    found = doctor.found("D11")["VM b"]
    assert seen(found)["vmq show queues: offered_to_guest, b"] == "300 frames"
    assert found["why"] == "VM a is idle and has a receive queue of its own; VM b is busy and has none."
    engine.changes(uplink + "queues = 2\n" + vms(LAN, a=A) + vms(LAN + "weight = 50\n", b=B))
    assert doctor.clear("D11")


def test_d19_a_saturated_processor_is_named_and_nobody_is_blamed(engine: Made, doctor: Doctor) -> None:
    """Frames without end. One flow is no mistake, and flows are not counted: unknown."""
    engine.takes("[doctor]\nbusy_percent = 1\n" + MEMORY + vms(LAN, a=A))

    def told() -> str:
        return " ".join(one["why"] for one in doctor.all("D19") if one["status"] == "unknown")

    until(told, "a saturated processor")
    assert f"processor {FIRST_CPU} is saturated" in told()
    assert not doctor.found("D19")


def test_d28_a_frame_that_is_longer_than_somebody_takes(engine: Made, doctor: Doctor) -> None:
    """One that its sender may send and its receiver may not get, one that its sender may not: a counter each."""
    text = vms("mtu = {}\n", a=A) + vms("mtu = {}\n", b=B)
    engine.takes(text.format(1500, 3000))
    with engine.guest("a", A, buffer_bytes=4096), engine.guest("b", B, buffer_bytes=4096) as b:
        until(lambda: engine.show("vms", "a")["state"] == "running")
        b.send([frame(A, B, size=2000), frame(A, B, size=4000), frame(A, B)])
        engine.offered("a", 1)
        until(lambda: len(doctor.found("D28")) == 2, "both")
        found = doctor.found("D28")
    assert {subject: seen(one) for subject, one in found.items()} == {
        "VM a": {"vmq show vms: drops, to_guest_too_long": "1"},
        "VM b": {"vmq show vms: drops, from_guest_too_long": "1"},
    }
    engine.takes(text.format(4000, 4000))
    with engine.guest("a", A, buffer_bytes=4096), engine.guest("b", B, buffer_bytes=4096) as b:
        until(lambda: engine.show("vms", "a")["state"] == "running")
        b.send([frame(A, B, size=2000), frame(A, B, size=4000)])
        engine.offered("a", 2)
        assert doctor.clear("D28")


def test_d28_a_vm_that_was_given_more_than_its_uplink(engine: Made, doctor: Doctor) -> None:
    engine.takes(MEMORY + "count = 0\n" + vms(LAN + "mtu = 9000\n", a=A))

    assert doctor.found("D28")["VM a"]["severity"] == "error"
    assert doctor.code == 1
    engine.changes(MEMORY + "count = 0\nmtu = 9000\n" + vms(LAN + "mtu = 9000\n", a=A))
    assert doctor.clear("D28")


def test_d29_a_burst_that_is_longer_than_the_ring(engine: Made, doctor: Doctor) -> None:
    """A guest that refills late has room for 64 frames of 500; one with a ring of 1024 loses none."""
    for size, expected in ((64, {"VM a, receive queue 0"}), (1024, set())):
        engine.takes(vms(a=A, b=B))
        with (
            engine.guest("a", A, size=size, room=1 << 20),
            engine.guest("b", B, size=1024, room=1 << 20) as b,
        ):
            until(lambda: engine.show("vms", "a")["state"] == "running")
            b.send([frame(A, B, number) for number in range(500)])
            engine.offered("a", 500)
            assert set(doctor.found("D29")) == expected


def test_d31_indications_that_are_held_back_and_gather_nothing(
    engine: Made, doctor: Doctor, tmp_path: Path
) -> None:
    """A frame every 5 ms, and 5,000 indications a second: each waits alone."""
    capture(tmp_path / "wire.pcap", frame(A, STRANGER))
    uplink = (
        "[doctor]\nsingle_percent = 10\n"
        + PCAP.format(tmp_path / "wire.pcap")
        + "repeat = true\nrate = 200\n"
    )
    engine.takes(uplink + vms(LAN + "indications = 5000\n", a=A))
    with engine.guest("a", A) as guest:
        for _ in range(10):
            assert guest.receive(1, PATIENCE)
        found = doctor.found("D31")["VM a, receive queue 0"]
        assert "indications 5000" in str(seen(found))
        engine.changes(uplink + vms(LAN, a=A))
        assert doctor.clear("D31")


def test_d31_frames_one_at_a_time_on_a_processor_that_is_busy(
    engine: Made, doctor: Doctor, tmp_path: Path
) -> None:
    """A flood first: what a processor has worked since its start is not forgotten soon. Busy is what the file says: 1 %."""
    limits = "[doctor]\nbusy_percent = 1\nsingle_percent = 10\n"
    engine.takes(limits + MEMORY + vms(LAN, a=A))
    until(lambda: engine.show("processors")[0]["busy_ratio"] >= 0.03, "a busy processor")
    capture(tmp_path / "wire.pcap", frame(A, STRANGER))
    slow = PCAP.format(tmp_path / "wire.pcap") + "repeat = true\nrate = 200\n" + vms(LAN, a=A)
    engine.takes(limits + slow)
    with engine.guest("a", A) as guest:
        for _ in range(10):
            assert guest.receive(1, PATIENCE)
        found = doctor.found("D31")["VM a, receive queue 0"]
        assert "vmq show processors: busy_ratio" in seen(found)
        assert found["why"].startswith("The processor is busy, yet frames go to the guest one at a time")
        engine.changes(slow)
        assert doctor.clear("D31")
