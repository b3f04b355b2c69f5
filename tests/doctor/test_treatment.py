# SPDX-License-Identifier: Apache-2.0
"""Mistakes made on recorded hosts and in real files, fixed, proved clear, taken back, and proved to be there again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.hosts import DB, LAN, WEB, qemu, vm
from tests.doctor.lab import CPU, ENGINE, FOUR, MISTAKES, SLEEPS, SOCKET, THREADS, Lab, nic
from vmq.config import Config, parse
from vmq.doctor import Machine, Situation, examine
from vmq.doctor.history import History
from vmq.doctor.steps import Command, Write
from vmq.doctor.treatment import Result, Treatment, prescribe, take_back
from vmq.dynamic import first_holders
from vmq.errors import HostError, VmqError
from vmq.ethtool import Driver


@pytest.fixture
def history(tmp_path: Path) -> Any:
    with History.open(tmp_path / "state/doctor.json") as opened:
        yield opened


@pytest.mark.parametrize(
    ("code", "text", "files", "machines"), MISTAKES, ids=[f"{one[0]}-{n}" for n, one in enumerate(MISTAKES)]
)
def test_a_mistake_is_made_fixed_proved_clear_taken_back_and_proved_to_be_there_again(
    tmp_path: Path,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    text: str,
    files: dict[str, str],
    machines: tuple[Machine, ...],
) -> None:
    """Every rule that gives steps for something that is read, not counted."""
    monkeypatch.setattr("vmq.doctor.rules_scarce.QUEUES_MAX", 40)  # a file of thousands of VMs takes its time
    lab = Lab(tmp_path, text, files, *machines)
    before = lab.found(code)
    assert before
    shape = {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file()}

    results = lab.treat(history, lab.cures(code))
    assert {one.status for one in results} <= {"fixed", "gone"}, results
    assert lab.found(code) == []

    while history.applied:
        assert take_back(lab.hands, history, history.applied[-1], "undone").status == "undone"
    assert [(one.subject, one.evidence) for one in lab.found(code)] == [
        (one.subject, one.evidence) for one in before
    ]
    assert lab.file.read_text() == text
    assert {path: path.read_bytes().strip() for path in shape} == {p: b.strip() for p, b in shape.items()}


# --- counted, and run -----------------------------------------------------------------------------------------


def owners(config: Config, frames: Mapping[str, int], places: int) -> dict[str, list[Any]]:
    """An engine that gives its receive queues out by weight, then in the order of the file."""
    holders = first_holders({name: one.weight for name, one in config.vms.items()}, places)
    rows = [{"vm": vm, "own": vm in holders, "offered_to_guest": count} for vm, count in frames.items()]
    return {"queues": rows, "vms": []}


def swallows(config: Config) -> dict[str, list[Any]]:
    """A NIC that knows no address of web's, unless it is asked for all frames."""
    lan: Any = config.uplinks["lan"]
    rows = [
        {"vm": "web", "forwarded": 5000, "offered_to_guest": 50 * lan.promiscuous},
        {"vm": "db", "forwarded": 9, "offered_to_guest": 70},
    ]
    return {"queues": rows, "vms": []}


def refuses(config: Config) -> dict[str, list[Any]]:
    """A NIC that has no room for another address."""
    lan: Any = config.uplinks["lan"]
    asked = {
        "name": "membership",
        "requested": "addresses",
        "effective": "addresses",
        "why": "the device refused it",
    }
    return {
        "uplinks": [{"name": "lan", "state": "up", "settings": [] if lan.promiscuous else [asked]}],
        "vms": [],
    }


BOTH = LAN + "{}" + vm("web", uplink="lan", weight=0) + vm("db", DB, uplink="lan")
COUNTED: list[tuple[str, str, Callable[[Config], dict[str, list[Any]]]]] = [
    ("D07", BOTH.format("").replace("weight = 0\n", ""), swallows),
    ("D09", LAN + vm("web", uplink="lan"), refuses),
    ("D10", BOTH.format(""), lambda of: owners(of, {"web": 9000, "db": 7000}, 2)),
    ("D11", BOTH.format("queues = 1\n").replace("weight = 0", "weight = 50"),
     lambda of: owners(of, {"web": 9000, "db": 7}, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "text", "rows"), COUNTED, ids=[one[0] for one in COUNTED])
def test_a_mistake_that_a_running_engine_shows(
    tmp_path: Path, history: History, code: str, text: str, rows: Callable[[Config], dict[str, list[Any]]]
) -> None:
    """What is in effect follows the file. Only --all fixes what a counter says."""
    lab = Lab(tmp_path, text, FOUR)
    lab.shown = lambda: rows(lab.read(lab.file.read_text()))
    before = lab.found(code)
    assert before
    told = {cure.by_hand for cure in lab.cures(code)}
    assert told == (
        {""}
        if before[0].confidence == "certain"
        else {f"the finding is {before[0].confidence}, not certain: --all fixes it, too"}
    )

    assert [one.status for one in lab.treat(history, lab.cures(code, uncertain=True))] == ["fixed"]
    assert lab.found(code) == []
    assert take_back(lab.hands, history, history.applied[-1], "undone").status == "undone"
    assert lab.found(code) == before
    assert lab.file.read_text() == text


def test_an_offload_of_a_device(tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """D12: a NIC that filters VLANs; no device of a test machine does, so this one is a dictionary."""
    lab = Lab(tmp_path, LAN + vm("web", uplink="lan", vlan=10), FOUR | nic("eth0"))
    features = {"rx-vlan-filter": True}
    lab.driver = lambda device: Driver("ixgbe", features=dict(features)) if device == "eth0" else None
    monkeypatch.setattr("vmq.ethtool.describe", lab.driver)
    monkeypatch.setattr("vmq.ethtool.switch", lambda _, name, *, on: features.update({name: on}))

    assert [one.status for one in lab.treat(history, lab.cures("D12", uncertain=True))] == ["fixed"]
    assert features == {"rx-vlan-filter": False}
    take_back(lab.hands, history, history.applied[-1], "undone")
    assert features == {"rx-vlan-filter": True}
    assert [one.subject for one in lab.found("D12")] == ["uplink lan"]


def miss(count: int) -> dict[str, list[Any]]:
    return {"misses": [{"kind": "wrong_vlan", "vm": "web", "mac": WEB, "vlan": 20, "count": count}]}


def test_what_was_counted_is_gone_when_the_count_rests(tmp_path: Path, history: History) -> None:
    """D12: near misses stay in the table; the row of before is no reason to take the fix back."""
    lab = Lab(tmp_path, LAN + vm("web", uplink="lan", vlan=10), FOUR)
    lab.shown = lambda: miss(7)

    assert [one.status for one in lab.treat(history, lab.cures("D12", uncertain=True))] == ["fixed"]
    assert parse(lab.file.read_text(), "x").vms["web"].vlan == 20


def test_what_still_counts_is_taken_back(tmp_path: Path, history: History) -> None:
    lab = Lab(tmp_path, LAN + vm("web", uplink="lan", vlan=10), FOUR)
    counts = iter(range(1000))
    lab.shown = lambda: miss(next(counts))
    before = lab.file.read_text()

    # The two looks of a proof, and what was seen between them, never agree.
    cures = lab.cures("D12", uncertain=True)
    assert [(one.status, one.why) for one in lab.treat(history, cures)] == [
        ("failed", "the finding is still there"),
        ("rolled back", ""),
    ]
    assert (lab.file.read_text(), history.applied) == (before, [])


def test_an_engine_that_ends_meanwhile_takes_the_fix_with_it(tmp_path: Path, history: History) -> None:
    lab = Lab(tmp_path, LAN + "mtu = 1500\n" + vm("web", uplink="lan", mtu=9000), FOUR)
    before = lab.file.read_text()
    lab.shown = lambda: {"vms": []} if lab.file.read_text() == before else None

    failed, back = lab.treat(history, lab.cures("D28"))
    assert (failed.status, back.status) == ("failed", "rolled back")
    assert "no longer answers" in failed.why
    assert lab.file.read_text() == before


# --- failures in the middle -----------------------------------------------------------------------------------

TWO = LAN + "mtu = 1500\n" + vm("web", uplink="lan", mtu=9000) + ENGINE
SLOW = FOUR | {f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave"}


def test_a_step_that_fails_takes_back_everything_of_the_run(tmp_path: Path, history: History) -> None:
    """The MTU was fixed and proved; the governor cannot be written."""
    lab = Lab(tmp_path, TWO, SLOW)
    cures = lab.cures("D28", "D30")
    do = lab.hands.do

    def refuse(step: Any) -> None:
        if isinstance(step, Write):
            raise HostError(step.path, "Input/output error", "")
        do(step)

    lab.hands.do = refuse  # type: ignore[method-assign]
    results = lab.treat(history, cures)

    assert [(one.code, one.status) for one in results] == [
        ("D28", "fixed"),
        ("D30", "failed"),
        ("D30", "rolled back"),
        ("D28", "rolled back"),
    ]
    assert "Input/output error" in results[1].why
    assert lab.file.read_text() == TWO
    assert history.applied == []


def test_steps_before_the_one_that_fails_are_taken_back_last_first(tmp_path: Path, history: History) -> None:
    lab = Lab(tmp_path, ENGINE, FOUR | SLEEPS)
    do, done = lab.hands.do, []

    def third_fails(step: Any) -> None:
        done.append(step)
        if len(done) == 2:
            raise HostError(step.path, "Input/output error", "")
        do(step)

    lab.hands.do = third_fails  # type: ignore[method-assign]
    cures = lab.cures("D30")
    assert [one.status for one in lab.treat(history, cures)] == ["failed", "rolled back"]
    state = f"/{CPU}/cpu1/cpuidle/state{{}}/disable"
    assert done == [Write(state.format(2), "1"), Write(state.format(3), "1"), Write(state.format(2), "0")]


def test_a_fix_that_does_not_help_is_taken_back(tmp_path: Path, history: History) -> None:
    """Its file takes the value and forgets it."""
    lab = Lab(tmp_path, ENGINE, SLOW)
    do = lab.hands.do
    lab.hands.do = lambda step: None if getattr(step, "value", "") == "performance" else do(step)  # type: ignore[method-assign]

    failed, back = lab.treat(history, lab.cures("D30"))
    assert (failed.status, failed.why, back.status) == ("failed", "the finding is still there", "rolled back")


def test_an_interrupt_takes_everything_back(tmp_path: Path, history: History) -> None:
    lab = Lab(tmp_path, TWO, SLOW)
    cures = lab.cures("D28", "D30")
    do = lab.hands.do

    def interrupted(step: Any) -> None:
        if isinstance(step, Write):
            raise KeyboardInterrupt
        do(step)

    lab.hands.do = interrupted  # type: ignore[method-assign]
    results = lab.treat(history, cures)
    assert [one.status for one in results] == ["fixed", "failed", "rolled back", "rolled back"]
    assert results[1].why == "KeyboardInterrupt"
    assert lab.file.read_text() == TWO


def test_a_fault_of_ours_takes_everything_back_too(tmp_path: Path, history: History) -> None:
    """And is not hidden."""
    lab = Lab(tmp_path, TWO, SLOW)
    cures, told = lab.cures("D28", "D30"), []

    def forget(result: Result) -> None:
        told.append(result.status)
        if told == ["fixed", "fixed"]:
            raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError):
        Treatment(lab.look, lab.hands, history, pauses=(0.0, 0.0)).treat(cures, forget)
    assert told == ["fixed", "fixed", "failed", "rolled back", "rolled back"]
    assert lab.file.read_text() == TWO
    assert history.applied == []


def test_what_cannot_be_taken_back_is_said_and_stays_in_the_history(tmp_path: Path, history: History) -> None:
    """--undo tries it again."""
    lab = Lab(tmp_path, ENGINE, SLOW)
    assert [one.status for one in lab.treat(history, lab.cures("D30"))] == ["fixed"]
    do = lab.hands.do

    def refuse(step: Any) -> None:
        raise HostError(step.path, "Input/output error", "")

    lab.hands.do = refuse  # type: ignore[method-assign]
    result = take_back(lab.hands, history, history.applied[-1], "undone")
    assert result.status == "failed"
    assert result.why.startswith("NOT taken back: echo powersave > ")
    lab.hands.do = do  # type: ignore[method-assign]
    with_a_new_doctor = History(history.path)
    assert take_back(lab.hands, with_a_new_doctor, with_a_new_doctor.applied[-1], "undone").status == "undone"
    assert [one.code for one in lab.found("D30")] == ["D30"]


def test_a_doctor_that_was_killed_left_the_way_back(tmp_path: Path, history: History) -> None:
    """It is written before the step is done."""
    lab = Lab(tmp_path, ENGINE, SLOW)
    do, kept = lab.hands.do, []

    def killed(step: Any) -> None:
        do(step)
        kept.append(history.path.read_bytes())

    lab.hands.do = killed  # type: ignore[method-assign]
    lab.treat(history, lab.cures("D30"))
    history.path.write_bytes(kept[0])
    lab.hands.do = do  # type: ignore[method-assign]

    again = History(history.path)
    assert take_back(lab.hands, again, again.applied[-1], "undone").status == "undone"
    assert [one.code for one in lab.found("D30")] == ["D30"]


# --- what is not touched --------------------------------------------------------------------------------------


def test_one_cure_may_heal_two(tmp_path: Path, history: History) -> None:
    """What is gone meanwhile is left alone; so is what would take other steps than those that were shown."""
    lab = Lab(tmp_path, '[engine]\nprocessors = "0-1"\n', THREADS)
    cures = lab.cures("D04", "D05")
    assert [cure.finding.code for cure in cures] == ["D04", "D05"]
    assert [(one.code, one.status) for one in lab.treat(history, cures)] == [
        ("D04", "fixed"),
        ("D05", "gone"),
    ]

    other = Lab(tmp_path, TWO, FOUR)
    shown = other.cures("D28")
    other.file.write_text(TWO.replace("mtu = 1500", "mtu = 1600"))
    (result,) = other.treat(history, shown)
    assert (result.status, result.why[:24]) == ("left", "it would take other step")
    assert "mtu = 9000" in other.file.read_text()


@pytest.mark.parametrize(
    ("text", "shown", "code", "why"),
    [
        ('[engine]\nprocessors = "0"\n', {"processors": []}, "D04", "vmq run has to be started again for it"),
        (LAN + vm("web", uplink="lan", socket=SOCKET), None, "D24", "the guest is restarted"),
        (TWO.replace("9000", "1400"), None, "D28", "somebody has to choose"),
    ],
)
def test_what_only_a_person_can_do_says_so(
    tmp_path: Path, text: str, shown: dict[str, list[Any]] | None, code: str, why: str
) -> None:
    lab = Lab(tmp_path, text, FOUR, qemu(queues=4))
    lab.shown = lambda: shown
    (cure,) = lab.cures(code)
    assert cure.by_hand == why


def test_without_a_file_a_key_is_for_hands(tmp_path: Path) -> None:
    row = {
        "name": "lan",
        "kind": "packet",
        "state": "up",
        "settings": [{"name": "x", "why": "the device refused it"}],
    }
    situation = Situation(shown={"uplinks": [row], "vms": []})
    (cure,) = prescribe(situation, examine(situation, ("D09",)), uncertain=True)
    assert cure.by_hand == "no configuration file was read: name it with --config"


def test_a_configuration_with_a_new_error_is_refused(tmp_path: Path) -> None:
    """As vmq check would; an error that was there before is no obstacle."""
    lab = Lab(
        tmp_path, LAN + "mtu = 1500\n" + vm("web", uplink="lan", mtu=9000) + vm("db", DB, uplink="lan"), FOUR
    )
    lab.check(lab.read(lab.file.read_text().replace(f'"{DB}"', f'"{DB}"\nmtu = 1500')))
    with pytest.raises(VmqError, match="would have D28 VM db"):
        lab.check(lab.read(lab.file.read_text().replace(f'"{DB}"', f'"{DB}"\nmtu = 9000')))


def test_every_step_of_a_command_names_its_way_back() -> None:
    """A command is the one step whose way back cannot be read."""
    row = {"cpu": 1, "effective": [0, 2], "thread": 77}
    situation = Situation(shown={"processors": [row], "vms": []})
    (found,) = examine(situation, ("D06",)).found
    assert found.fix is not None
    assert found.fix.steps == (Command(("taskset", "-pc", "1", "77"), ("taskset", "-pc", "0,2", "77")),)
