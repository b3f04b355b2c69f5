# SPDX-License-Identifier: Apache-2.0
"""Steps carried out on recorded hosts and real files: whole or not at all, and with a way back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doctor.hosts import record
from vmq.config import Config, parse
from vmq.config.edit import Change
from vmq.doctor.hands import Hands, replace_file, run
from vmq.doctor.steps import Command, Edit, Feature, Restore, Write, edit
from vmq.errors import ConfigError, HostError, VmqError

TEXT = '# ours\n[vm.web]\nmac = "52:54:00:00:00:01" # the box says so\nvlan = 10\n'
GOVERNOR = "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor"


class Reloads:
    """A running engine: what it read, and the texts that it refuses."""

    def __init__(self, file: Path, *refused: str) -> None:
        self.file, self.refused = file, refused
        self.read: list[str] = []

    def __call__(self) -> None:
        self.read.append(self.file.read_text())
        if any(word in self.read[-1] for word in self.refused):
            raise VmqError("the engine refused it")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vmq.toml"
    path.write_text(TEXT)
    path.chmod(0o640)
    return path


def hands(file: Path, engine: Reloads | None = None, root: Path = Path("/")) -> Hands:
    return Hands(str(file), lambda text: parse(text, str(file)), no_web_at_9000, engine, root)


def no_web_at_9000(config: Config) -> None:
    """What a check finds wrong."""
    if config.vms["web"].mtu == 9000:
        raise VmqError("it would have D28 VM web")


def test_a_program_is_run_without_a_shell(tmp_path: Path) -> None:
    """A word is a word, whatever stands in it."""
    made = tmp_path / "a; b $(c)"
    run(("touch", str(made)))
    assert made.exists()


def test_a_program_that_fails_says_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"ls /none: exit code 2: ls: cannot access"):
        run(("ls", "/none"))
    with pytest.raises(HostError, match=r"No such file or directory. Remedy: Install no-such-program"):
        run(("no-such-program",))


def test_the_way_back_of_a_command_is_its_own() -> None:
    step = Command(("a",), ("b",))
    assert hands(Path("/none")).way_back(step) == Command(("b",), ("a",))


def test_a_value_is_written_and_the_old_one_is_the_way_back(tmp_path: Path) -> None:
    root = record(tmp_path, {GOVERNOR[1:]: "powersave"})
    ours, step = hands(tmp_path / "x", root=root), Write(GOVERNOR, "performance")

    back = ours.way_back(step)
    ours.do(step)
    assert (root / GOVERNOR[1:]).read_text() == "performance\n"
    assert back == Write(GOVERNOR, "powersave")
    ours.do(back)
    assert (root / GOVERNOR[1:]).read_text() == "powersave\n"


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """The kernel makes its files."""
    ours = hands(tmp_path / "x", root=tmp_path)
    with pytest.raises(HostError, match="cannot be read"):
        ours.way_back(Write("/proc/irq/1/smp_affinity_list", "1"))
    with pytest.raises(HostError, match="smp_affinity_list: 1: No such file"):
        ours.do(Write("/proc/irq/1/smp_affinity_list", "1"))
    with pytest.raises(HostError, match="none0: does not say whether rx-gro is on"):
        ours.way_back(Feature("none0", "rx-gro", on=True))


def test_a_configuration_is_changed_and_put_back_letter_by_letter(file: Path) -> None:
    """Comments, rights and owner stay; a running engine reads both."""
    engine = Reloads(file)
    ours, step = hands(file, engine), edit("vm.web", vlan=None, mtu=1400)

    back = ours.way_back(step)
    ours.do(step)
    new = TEXT.replace("vlan = 10\n", "mtu = 1400\n")
    assert file.read_text() == new
    assert file.stat().st_mode & 0o777 == 0o640
    ours.do(back)
    assert file.read_text() == TEXT
    assert engine.read == [new, TEXT]
    assert [path.name for path in file.parent.iterdir()] == ["vmq.toml"]


def test_a_configuration_with_a_mistake_never_takes_its_place(file: Path) -> None:
    engine = Reloads(file)
    with pytest.raises(ConfigError, match=r"\[vm.web\] vlan: 5000 is not valid"):
        hands(file, engine).do(edit("vm.web", vlan=5000))
    assert (file.read_text(), engine.read) == (TEXT, [])


def test_what_was_there_before_is_put_back_with_its_errors(file: Path) -> None:
    """A new error is refused; the one that was fixed has to be possible again."""
    file.write_text(TEXT + "mtu = 9000\n")
    ours, step = hands(file), edit("vm.web", mtu=1500)
    back = ours.way_back(step)
    ours.do(step)

    with pytest.raises(VmqError, match="it would have D28"):
        ours.do(edit("vm.web", mtu=9000))
    assert "mtu = 1500" in file.read_text()
    ours.do(back)
    assert file.read_text() == TEXT + "mtu = 9000\n"


def test_what_the_engine_refuses_is_put_back_and_read_again(file: Path) -> None:
    engine = Reloads(file, "vlan = 20")
    with pytest.raises(VmqError, match="the engine refused it"):
        hands(file, engine).do(edit("vm.web", vlan=20))
    assert file.read_text() == TEXT
    assert engine.read == [TEXT.replace("vlan = 10", "vlan = 20"), TEXT]


def test_what_others_changed_meanwhile_stays(file: Path) -> None:
    """Only our keys go back; if they were changed too, nothing is guessed."""
    ours, step = hands(file), edit("vm.web", vlan=20)
    back = ours.way_back(step)
    ours.do(step)
    file.write_text(file.read_text() + "mtu = 1400\n")
    ours.do(back)
    assert file.read_text() == TEXT + "mtu = 1400\n"

    file.write_text(TEXT.replace("vlan = 10", "vlan = 30"))
    with pytest.raises(ConfigError, match=r"\[vm.web\] vlan: changed since"):
        ours.do(back)
    assert "vlan = 30" in file.read_text()


def test_lists_are_compared_as_the_file_has_them(file: Path) -> None:
    change = Change("vm.web", "mac", ("52:54:00:00:00:02", "52:54:00:00:00:03"))
    ours = hands(file)
    back = ours.way_back(Edit((change,)))
    ours.do(Edit((change,)))
    file.write_text(file.read_text() + "mtu = 1400\n")
    assert isinstance(back, Restore)
    ours.do(back)
    assert file.read_text() == TEXT + "mtu = 1400\n"


def test_a_link_leads_where_it_led(file: Path) -> None:
    """/etc/vmq/vmq.toml is often a link into a repository."""
    link = file.with_name("link.toml")
    link.symlink_to(file.name)
    replace_file(link, "other\n")
    assert link.is_symlink()
    assert file.read_text() == "other\n"


def test_a_file_that_cannot_be_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be written"):
        hands(tmp_path / "none/vmq.toml")._replace("x")
    assert list(tmp_path.iterdir()) == []
