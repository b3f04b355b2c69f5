# SPDX-License-Identifier: Apache-2.0
"""Mistakes that a running engine shows: its file, its processors, its receive queues, what its guests took."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.engine.running import FIRST_CPU, TWO_CPUS, Running, two_processors, until
from tests.mistakes.made import LAN, MEMORY, A, B, Doctor, Made, seen, vms
from vmq.cli import main
from vmq.config import Memory
from vmq.control.ward import examined
from vmq.doctor import VIEWS, Facts
from vmq.dynamic import Answer, Verdict
from vmq.engine import dynamics, guarding, proving

PAIRS = f'[vm.a]\nmac = "{A}"\nqueue_pairs = 2\n'


def test_d04_a_worker_on_the_hosts_processor(engine: Made, doctor: Doctor) -> None:
    """The engine's is the first that may be used: on most hosts that is 0."""
    assert ("processor 0" in doctor.found("D04")) is (FIRST_CPU == 0)
    assert seen(doctor.all("D04")[0])["vmq show processors"] == str(FIRST_CPU)


# --- D06 ----------------------------------------------------------------------------------------------------


def test_d06_a_file_that_the_engine_was_not_told_of(engine: Made, doctor: Doctor) -> None:
    """A key, and a VM that is not there; after SIGHUP it is in force."""
    engine.takes(vms(a=A))
    engine.says(vms("mtu = 1400\n", a=A, b=B))

    (found,) = doctor.found("D06").values()
    assert (found["subject"], found["severity"]) == (f"configuration {engine.path}", "warning")
    assert seen(found) == {f"{engine.path}: [vm.a] mtu": "1400", f"{engine.path}: [vm.b]": "is there"}
    assert "was not told" in found["why"]
    engine.told()
    assert doctor.clear("D06")


def test_d06_a_file_that_the_engine_has_refused(engine: Made, doctor: Doctor) -> None:
    """It says what was wrong, and what is in force instead; who takes the mistake back has nothing to tell it."""
    good, bad = vms(a=A), vms(a=A) + '[uplink.lan]\nkind = "packet"\ndevice = "nosuch0"\n'
    engine.takes(good)
    engine.says(bad)
    assert "there is no device nosuch0" in engine.told()

    (found,) = doctor.found("D06").values()
    assert "there is no device nosuch0" in seen(found)["vmq show configuration: refused"]
    assert seen(found)[f"{engine.path}: [uplink.lan]"] == "is there"
    assert "refused the file" in found["why"]
    engine.says(vms("mtu = 1400\n", a=A))
    (found,) = doctor.found("D06").values()
    assert seen(found) == {f"{engine.path}: [vm.a] mtu": "1400"}
    assert found["why"].startswith("An earlier version of the file was refused.")
    engine.says(good)
    assert doctor.clear("D06")


def test_d06_a_refused_file_that_nobody_can_read_either(
    engine: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """vmq doctor cannot judge a file that is none; asked for the engine alone, it says that one was refused."""
    engine.takes(vms(a=A))
    engine.says('[vm.a]\nmac = "nonsense"\n')
    assert "reload refused" in engine.told()

    assert main(["doctor", "--config", str(engine.path)]) == 2
    assert "[vm.a] mac" in capsys.readouterr().err
    (tmp_path / "other.toml").write_text("")
    other = Doctor(tmp_path / "other.toml", capsys)
    (found,) = other.found("D06", "--api", engine.api).values()
    assert "[vm.a] mac" in seen(found)["vmq show configuration: refused"]


@two_processors
def test_d06_a_worker_that_was_moved(engine: Made, doctor: Doctor) -> None:
    """taskset on its thread, and back."""
    (row,) = engine.show("processors")
    os.sched_setaffinity(row["thread"], TWO_CPUS)

    (found,) = doctor.found("D06").values()
    assert found["subject"] == f"processor {FIRST_CPU}"
    assert seen(found) == {"vmq show processors --json: effective": str(TWO_CPUS)}
    os.sched_setaffinity(row["thread"], [FIRST_CPU])
    assert doctor.clear("D06")


def test_d06_a_guest_that_starts_no_driver(engine: Made, doctor: Doctor) -> None:
    """Its front-end is there: memory is shared, and no ring runs."""
    engine.takes(vms(a=A))
    guest = engine.guest("a", A)
    guest.frontend.connect()
    guest.frontend.handshake(guest.features)
    guest.frontend.set_features()
    guest.frontend.set_memory(guest.memory)
    until(lambda: engine.show("vms", "a")["state"] == "connected")

    (found,) = doctor.found("D06").values()
    assert (found["subject"], found["severity"]) == ("VM a", "note")
    guest.close()
    with engine.guest("a", A):
        assert doctor.clear("D06")


def allocated(engine: Made, capsys: pytest.CaptureFixture[str], *words: str) -> int:
    """A receive queue that somebody allocates for VM a."""
    capsys.readouterr()
    assert main(["queue", "allocate", "--vm", "a", "--json", "--api", engine.api, *words]) == 0
    queue: int = json.loads(capsys.readouterr().out)["queue"]
    return queue


def test_d06_a_receive_queue_that_its_guest_does_not_enable(
    engine: Made, doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody allocated one on the second queue pair of a guest that runs one."""
    engine.takes(f'[vm.a]\nmac = "{A}"\nqueue_pairs = 2\n')
    with engine.guest("a", A):
        until(lambda: engine.show("vms", "a")["queues_running"])
        queue = allocated(engine, capsys)
        words = [
            "filter",
            "set",
            str(queue),
            f"mac_destination=={A}",
            "ethertype==0x88b5",
            "--api",
            engine.api,
        ]
        assert main([*words, "--priority", "1"]) == 0

        found = {one["why"] for one in doctor.all("D06") if one["status"] == "found"}
        assert f"Receive queue {queue} of cli is in effect; its guest has not enabled it." in found


def test_d06_a_filter_of_somebody_else_that_takes_a_vms_frames(
    engine: Made, doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own stands, and is not in effect; the other one is cleared as the doctor says."""
    engine.takes(vms(a=A))
    drop = [
        "filter",
        "set",
        "drop",
        f"mac_destination=={A}",
        "--priority",
        "1",
        "--json",
        "--api",
        engine.api,
    ]
    assert main(drop) == 0
    number = json.loads(capsys.readouterr().out)["filter"]

    found = doctor.found("D06")["VM a"]
    assert [one["where"] for one in found["evidence"]] == ["vmq show vms --json: settings, filters"]
    assert found["fix"]["command"].startswith("vmq filter clear")
    assert main(["filter", "clear", str(number), "--api", engine.api]) == 0
    assert doctor.clear("D06")


def test_d06_an_idle_vm_without_a_receive_queue_is_a_note(engine: Made, doctor: Doctor) -> None:
    """Asked for and not in effect, and it costs nothing: neither D08 nor D11 is louder."""
    engine.takes(MEMORY + "count = 0\nqueues = 1\n" + vms(LAN, a=A, b=B))

    (found,) = doctor.found("D06").values()
    assert (found["subject"], found["severity"]) == ("VM b", "note")
    assert doctor.found("D08")["uplink lan"]["severity"] == "note"
    assert doctor.clear("D11")


def test_d34_receive_queues_switched_off_and_nobody_measured(engine: Made, doctor: Doctor) -> None:
    """queues = 0, and weight = 0 for everybody, are the same."""
    for text in (
        MEMORY + "count = 0\nqueues = 0\n" + vms(LAN, a=A),
        MEMORY + "count = 0\n" + vms(LAN + "weight = 0\n", a=A),
    ):
        engine.takes(text)
        assert set(doctor.found("D34")) == {"uplink lan"}
    engine.changes(MEMORY + "count = 0\n" + vms(LAN, a=A))
    assert doctor.clear("D34")


# --- D17 to D34 ---------------------------------------------------------------------------------------------


def test_d17_a_receive_queue_that_was_freed_is_used_again(
    engine: Made, doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its id is refused and counted."""
    engine.takes(MEMORY + "count = 0\n" + PAIRS + LAN)
    free = ["queue", "free", str(allocated(engine, capsys)), "--api", engine.api]
    assert main(free) == 0
    assert doctor.clear("D17")
    assert main(free) != 0
    capsys.readouterr()

    (found,) = doctor.found("D17").values()
    assert found["subject"] == "lan"
    assert [int(value) for value in seen(found).values()].count(1) == 1


def test_d18_a_driver_that_takes_no_mergeable_buffers(engine: Made, doctor: Doctor) -> None:
    engine.takes(vms(a=A))
    with engine.guest("a", A, mergeable=False):
        until(lambda: engine.show("vms", "a")["state"] == "running")
        assert seen(doctor.found("D18")["VM a"])["vmq show vms --json: features"] == "no net_f_mrg_rxbuf"
    until(lambda: engine.show("vms", "a")["state"] == "listening")
    with engine.guest("a", A):
        until(lambda: engine.show("vms", "a")["state"] == "running")
        assert doctor.clear("D18")


def test_d22_whether_a_receive_queue_makes_it_slower_is_measured(
    engine: Made, doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown, until --prove has measured; then the doctor says what that said."""
    engine.takes(MEMORY + vms(LAN, a=A))
    with engine.guest("a", A):
        until(lambda: engine.show("vms", "a")["state"] == "running")
        (unknown,) = doctor.all("D22")
        assert (unknown["status"], "nothing was measured yet" in unknown["why"]) == ("unknown", True)
        main(["doctor", "--prove", "a", "--json", "--api", engine.api])
        assert capsys.readouterr().err == ""
        verdict = engine.ask("proof")["verdict"]
        (said,) = doctor.all("D22")
    expected = {"slower": "found", "not slower": "clear", "cannot tell": "unknown"}[verdict["answer"]]
    assert said["status"] == expected
    assert verdict["why"] in str(said["evidence"]) or expected == "unknown"


def test_d22_a_receive_queue_that_makes_it_slower_is_found_after_the_guard_has_acted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard measures by itself, with real frames; that they say "slower" is the test's: nothing makes it so for sure."""
    monkeypatch.setattr(dynamics, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(guarding, "RATE_MIN", 0)
    monkeypatch.setattr(guarding, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(proving, "SLICE_SECONDS", 0.01)
    monkeypatch.setattr(
        proving, "judge", lambda *_, **__: Verdict(Answer.SLOWER, "own 90 ns a frame, plain 40")
    )
    with Running(tmp_path) as running:
        running.configure({"lan": Memory(lossless=False)}, a=running.vm("a", uplink="lan"))
        vm = running.engine.vms["a"]
        with running.guest("a"):
            until(lambda: running.engine.guarding.fallen(vm), "fallen back")
            rows = {view: running.show(view) for view in VIEWS}
    findings, failed = examined(Facts(), running.engine.config, rows, "test.toml")
    (found,) = [one for one in findings if one.code == "D22"]
    assert (found.status, found.severity, found.subject, failed) == ("found", "note", "VM a", {})
    assert [entry.value for entry in found.evidence] == [
        "own 90 ns a frame, plain 40",
        f"default: {running.engine.guarding.fallen(vm)}",
    ]


def test_d23_no_indirection_table_can_be_uneven(engine: Made, doctor: Doctor) -> None:
    """Impossible: 64 flows for a guest of four queue pairs all go through its one receive queue, and no key spreads them."""
    engine.takes(MEMORY + f'count = 640\nflows = 64\n[vm.a]\nmac = "{A}"\nqueue_pairs = 4\n{LAN}')
    with engine.guest("a", A, queues=4):
        until(lambda: engine.show("vms", "a")["queues_running"] == 4)
        until(lambda: sum(one["offered_to_guest"] for one in engine.show("queues")) == 640)
        assert [one["offered_to_guest"] for one in engine.show("queues")] == [640, 0, 0, 0]
        assert doctor.statuses("D23") == {"not_applicable"}
    engine.says(f'[vm.a]\nmac = "{A}"\nindirection = [0, 0, 0, 0]\n')
    assert "indirection: unknown key" in engine.told()


def test_d27_no_driver_offers_more_than_another(engine: Made, doctor: Doctor) -> None:
    """Impossible: every receive queue is placed alike, whatever carries it, and no key asks for more."""
    engine.takes(MEMORY + "count = 0\n" + vms(LAN, a=A) + vms(b=B))
    placed = {
        row["of"]: (row["effective"], row["why"])
        for row in engine.show("settings")
        if row["name"] == "placement"
    }
    assert placed["vm a"] == placed["vm b"]
    assert placed["vm a"][0] == "switched"
    assert doctor.statuses("D27") == {"not_applicable"}
