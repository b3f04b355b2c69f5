# SPDX-License-Identifier: Apache-2.0
"""Completion: the scripts are made from the parser; names come from the engine."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_knows_the_verbs_and_asks_for_names(vmq, shell: str) -> None:
    """Static words from the parser, VMs from the hidden verb."""
    pytest.importorskip("shtab")

    code, out, err = vmq("completion", shell)

    assert (code, err) == (0, "")
    assert "snippet" in out
    assert "vmq __complete vms" in out
    assert "vmq __complete uplinks" in out
    assert "ls /sys/class/net" in out
    assert "reset-statistics" in out


def test_the_bash_script_is_one(vmq) -> None:
    """bash reads it without a word."""
    pytest.importorskip("shtab")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")

    ran = subprocess.run(
        [bash, "-n"],
        input=vmq("completion", "bash")[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")


def test_without_shtab_the_remedy_is_named(vmq, monkeypatch) -> None:
    """It is not needed at run time otherwise."""
    monkeypatch.setitem(sys.modules, "shtab", None)

    assert vmq("completion", "zsh") == (
        1,
        "",
        "vmq completion: shtab is not installed. Remedy: Run: python -m pip install shtab\n",
    )


def test_names_of_vms_are_a_line_each(vmq, engine) -> None:
    """What the script asks for: of VMs, and of uplinks."""
    engine.answer([{"name": "web"}, {"name": "db"}])

    assert vmq("__complete", "vms") == (0, "web\ndb\n", "")
    assert vmq("__complete", "uplinks") == (0, "web\ndb\n", "")
    assert [question["params"] for question in engine.asked] == [{"what": "vms"}, {"what": "uplinks"}]


def test_a_shell_hears_no_errors(vmq, monkeypatch) -> None:
    """No engine, no names; an unknown noun is the script's mistake."""
    monkeypatch.setenv("VMQ_API", "/nonexistent")

    assert vmq("__complete", "vms") == (1, "", "")
    assert vmq("__complete", "filters") == (2, "", "")
