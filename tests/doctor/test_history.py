# SPDX-License-Identifier: Apache-2.0
"""The file of applied fixes: complete, private, and one doctor's at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmq.doctor.history import LENGTH, Applied, History, default_path
from vmq.doctor.steps import Command, Feature, Restore, Write, edit
from vmq.errors import HostError


def fix(number: int = 0) -> Applied:
    return Applied(
        at=number,
        code="D13",
        subject="uplink lan",
        title="t",
        file="/etc/vmq/vmq.toml",
        steps=[Feature("eth0", "rx-gro", on=True), edit("vm.web", mtu=1500), Write("/sys/a", "1")],
        back=[
            Write("/sys/a", "0"),
            Restore(edit("vm.web", mtu=1500).changes, "a", "b"),
            Command(("x",), ("y",)),
        ],
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/vmq/doctor.json"


def test_what_was_pushed_is_there_for_the_next_doctor(path: Path) -> None:
    with History.open(path) as history:
        assert history.applied == []
        history.push(fix())
    with History.open(path) as history:
        assert history.applied == [fix()]
        history.drop(history.applied[0])
    with History.open(path) as history:
        assert history.applied == []


def test_the_file_is_its_owners_alone(path: Path) -> None:
    """It holds configurations."""
    with History.open(path) as history:
        history.push(fix())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_last_ones_are_kept(path: Path) -> None:
    with History.open(path) as history:
        for number in range(LENGTH + 3):
            history.push(fix(number))
        assert [history.applied[0].at, history.applied[-1].at] == [3, LENGTH + 2]


def test_one_doctor_at_a_time(path: Path) -> None:
    with History.open(path), pytest.raises(HostError, match="another vmq doctor"), History.open(path):
        pass
    with History.open(path):
        pass


@pytest.mark.parametrize("text", ["[", "{}", '[{"code": 1}]', "\xff"])
def test_a_file_that_is_none_is_refused_and_left(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(HostError, match="is no list of fixes"), History.open(path):
        pass
    assert path.read_text(encoding="latin-1") == text


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_path() == Path("/var/lib/vmq/doctor.json")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert default_path() == Path("/s/vmq/doctor.json")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert default_path() == Path("/h/.local/state/vmq/doctor.json")


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot be written"), History.open(tmp_path / "file/vmq/doctor.json"):
        pass
