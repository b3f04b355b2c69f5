# SPDX-License-Identifier: Apache-2.0
"""vmq doctor --fix and --undo: the plan, the question, the engine that has to agree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.live import Live
from tests.control.daemon import Process
from tests.doctor.hosts import EIGHT, host, links, nic
from tests.engine.running import FIRST_CPU, until
from vmq.cli import fix as verb
from vmq.config import load
from vmq.doctor import Facts

WEB = "52:54:00:00:00:01"
TEXT = """\
# the lab
[engine]
api = "{folder}/api.sock"
processors = "{cpu}"

[uplink.lan]
kind = "packet"
device = "eth0"

[vm.web]
uplink = "lan"
mac = "52:54:00:00:00:01"
mtu = 9000   # jumbo
"""
PLAN = """\
1 to fix

D28  VM web: MTUs do not match
     do       mtu = 1500 in [vm.web]; in {file}
     disturbs VM web
     undo     {file} as it was before
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fixes are kept, whoever runs this; and no engine but ours."""
    path = tmp_path / "state/doctor.json"
    monkeypatch.setattr("vmq.doctor.history.default_path", lambda: path)
    monkeypatch.delenv("VMQ_API", raising=False)
    return path


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with one mistake, and a host that has none."""
    recorded = host(*EIGHT, links=links(nic("eth0", mtu=1500)))
    monkeypatch.setattr(Facts, "read", classmethod(lambda *_, **__: recorded))
    path = tmp_path / "vmq.toml"
    path.write_text(TEXT.format(folder=tmp_path, cpu=max(os.sched_getaffinity(0))))
    return path


def fixed(file: Path) -> bool:
    return load(file).vms["web"].mtu == 1500


def test_without_a_terminal_and_without_yes_the_plan_is_all(vmq: Any, file: Path, state: Path) -> None:
    before = file.read_text()

    code, out, err = vmq("doctor", "D28", "--fix", "--config", str(file))

    assert (code, out) == (1, PLAN.format(file=file))
    assert err == "not applied: nobody could be asked; --yes applies it\n"
    assert (file.read_text(), state.exists()) == (before, False)


def test_yes_applies_it_and_undo_takes_it_back_letter_by_letter(vmq: Any, file: Path, state: Path) -> None:
    before = file.read_text()

    code, out, _ = vmq("doctor", "D28", "--fix", "--yes", "--config", str(file))
    assert (code, out) == (0, PLAN.format(file=file) + "D28  VM web: fixed\n")
    assert file.read_text() == before.replace("mtu = 9000   # jumbo", "mtu = 1500   # jumbo")
    assert vmq("doctor", "D28", "--config", str(file))[0] == 0

    code, out, _ = vmq("doctor", "--undo", "--yes", "--config", str(file))
    assert code == 0
    assert out.splitlines()[1:] == [f"     do       {file} as it was before", "D28  VM web: undone"]
    assert file.read_text() == before
    assert vmq("doctor", "D28", "--config", str(file))[0] == 1
    assert vmq("doctor", "--undo", "--yes", "--config", str(file))[:2] == (1, "no fix to take back\n")


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("YES ", 0), ("", 1), ("n", 1), ("yeah", 1)])
def test_at_a_terminal_somebody_is_asked(
    vmq: Any, file: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    """Nothing but y or yes is yes."""
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)

    assert vmq("doctor", "D28", "--fix", "--config", str(file))[0] == code
    assert asked == ["Apply? [y/N] "]
    assert fixed(file) == (code == 0)


def test_an_end_of_input_is_a_no(vmq: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ends)
    assert vmq("doctor", "D28", "--fix", "--config", str(file))[0] == 1
    assert not fixed(file)


def test_json_has_plan_and_results(vmq: Any, file: Path) -> None:
    code, out, _ = vmq("doctor", "D28", "--fix", "--json", "--config", str(file))
    told = json.loads(out)
    (plan,) = told["plan"]
    assert (code, told["applied"], told["results"]) == (1, False, [])
    assert (plan["code"], plan["automatic"], plan["back"]) == ("D28", True, [f"{file} as it was before"])
    assert plan["fix"]["steps"] == [
        {"kind": "edit", "changes": [{"table": "vm.web", "key": "mtu", "value": 1500}]}
    ]

    code, out, _ = vmq("doctor", "D28", "--fix", "--json", "--yes", "--config", str(file))
    assert (code, json.loads(out)["results"]) == (
        0, [{"code": "D28", "subject": "VM web", "status": "fixed", "why": ""}],
    )  # fmt: skip
    told = json.loads(vmq("doctor", "--undo", "--json", "--config", str(file))[1])
    assert (told["last"]["code"], told["applied"]) == ("D28", False)
    told = json.loads(vmq("doctor", "--undo", "--json", "--yes", "--config", str(file))[1])
    assert told["result"]["status"] == "undone"


def test_what_is_for_hands_is_listed_and_never_run(vmq: Any, file: Path) -> None:
    """Exit code 0: nothing of it is an error."""
    file.write_text(file.read_text().replace("9000", "1400"))
    code, out, _ = vmq("doctor", "D28", "--fix", "--yes", "--config", str(file))
    assert code == 0
    assert out.splitlines() == [
        "nothing to fix", "", "by hand", "D28  VM web: MTUs do not match",
        "     do       Leave mtu out of [vm.web], if the guest takes 1500",
        "     because  somebody has to choose",
    ]  # fmt: skip


def test_undo_without_anybody_to_ask_changes_nothing(vmq: Any, file: Path) -> None:
    vmq("doctor", "D28", "--fix", "--yes", "--config", str(file))
    assert vmq("doctor", "--undo", "--config", str(file))[0] == 1
    assert fixed(file)


# --- a running engine -----------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    monkeypatch.setattr(verb, "PATIENCE", 0.5)
    with Live(tmp_path / "api.sock", file, vms=list, queues=list) as running:
        yield running


def test_a_running_engine_reads_its_file_and_is_asked(vmq: Any, file: Path, engine: Live) -> None:
    """Old events are none of ours."""
    engine.reload()
    assert vmq("doctor", "D28", "--fix", "--yes", "--config", str(file))[0] == 0
    assert vmq("doctor", "--undo", "--yes", "--config", str(file))[0] == 0
    assert [one["event"] for one in engine.events] == ["configured"] * 3


def test_a_configuration_that_the_engine_refuses_is_put_back(vmq: Any, file: Path, engine: Live) -> None:
    engine.refuses, before = "mtu = 1500", file.read_text()

    code, out, _ = vmq("doctor", "D28", "--fix", "--yes", "--config", str(file))

    assert code == 1
    assert out.splitlines()[-2:] == [
        "D28  VM web: FAILED: the engine refused it: it does not fit. Remedy: another",
        "D28  VM web: ROLLED BACK",
    ]
    assert file.read_text() == before
    assert [bool(one["wrong"]) for one in engine.events] == [True, False]


def test_an_engine_that_does_not_answer_the_signal_has_not_taken_it(
    vmq: Any, file: Path, engine: Live
) -> None:
    engine.deaf, before = True, file.read_text()

    out = vmq("doctor", "D28", "--fix", "--yes", "--config", str(file))[1]
    assert "FAILED: the engine did not take it within" in out
    assert file.read_text() == before


def test_a_process_that_is_not_who_it_says_gets_no_signal(vmq: Any, file: Path, engine: Live) -> None:
    """In a container it has another number, which is somebody else's here."""
    engine.pid, before = 1, file.read_text()

    out = vmq("doctor", "D28", "--fix", "--yes", "--config", str(file))[1]
    assert (
        "FAILED: the engine's process is not to be seen from here. Remedy: Send it SIGHUP where it runs"
        in out
    )
    assert (file.read_text(), engine.events) == (before, [])


def test_weights_of_a_running_engine(vmq: Any, file: Path, engine: Live) -> None:
    """D10: who has a receive queue of its own follows the file."""
    file.write_text(file.read_text().replace("mtu = 9000   # jumbo", "weight = 0"))
    engine.views["queues"] = lambda: [
        {
            "vm": "web",
            "queue": 0,
            "own": load(file).vms["web"].weight > 0,
            "offered_to_guest": 5000,
            "drops": {},
        }
    ]
    words = ("doctor", "D10", "--fix", "--yes", "--config", str(file))

    assert vmq(*words)[1].splitlines()[0] == "nothing to fix"
    code, out, _ = vmq(*words, "--all")
    assert (code, out.splitlines()[-1]) == (0, "D10  VM web: fixed")
    assert load(file).vms["web"].weight == 100
    assert vmq("doctor", "--undo", "--yes", "--config", str(file))[0] == 0
    assert "D10  VM web" in vmq("doctor", "D10", "--config", str(file))[1]


REAL = """
[engine]
api = "{folder}/api.sock"
processors = "{cpu}"
[uplink.lan]
kind = "memory"
count = 0
[vm.web]
uplink = "lan"
mac = "{mac}"
mtu = 9000
"""


def test_a_real_engine_takes_the_fix_and_gives_it_back(vmq: Any, tmp_path: Path) -> None:
    """What is in effect follows the file, and the engine's own events say so."""
    process = Process(tmp_path)
    process.path.write_text(REAL.format(folder=tmp_path, cpu=FIRST_CPU, mac=WEB))
    with process.start().ready():
        code, out, err = vmq("doctor", "D28", "--fix", "--yes", "--config", str(process.path))
        assert (code, out.splitlines()[-1], err) == (0, "D28  VM web: fixed", "")
        assert process.show("vms", "web")["mtu"] == 1500
        assert vmq("doctor", "--undo", "--yes", "--config", str(process.path))[0] == 0
        assert process.show("vms", "web")["mtu"] == 9000
        told = [one["wrong"] for one in process.ask("events", since=0) if one["event"] == "configured"]
    assert told == [None, None, None]


def test_a_weight_of_a_real_engine(vmq: Any, tmp_path: Path) -> None:
    """D10: frames through the default queue are the engine's count, and whose queue it is, its word."""
    process = Process(tmp_path)
    text = REAL.format(folder=tmp_path, cpu=FIRST_CPU, mac=WEB).replace("mtu = 9000", "weight = 0")
    process.path.write_text(text.replace("count = 0", "count = 3000\nlossless = false"))
    words = ("doctor", "D10", "--config", str(process.path))
    with process.start().ready():
        until(lambda: process.show("queues")[0]["offered_to_guest"] == 3000, "all frames")
        assert "D10  VM web" in vmq(*words)[1]
        assert vmq(*words, "--fix", "--all", "--yes")[1].splitlines()[-1] == "D10  VM web: fixed"
        assert process.show("queues")[0]["own"]
        assert vmq(*words)[1].splitlines()[0] == "nothing found"
        vmq("doctor", "--undo", "--yes", "--config", str(process.path))
        assert process.show("queues")[0]["weight"] == 0
