# SPDX-License-Identifier: Apache-2.0
"""vmq nic: what is printed, the shape of its JSON, and exit codes, on devices that are doubles."""

from __future__ import annotations

import json

import pytest

import vmq.nic
from tests.nic.doubles import Able, Unable
from vmq.nic.steps import STEPS


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, Able]:
    """What each name is a double of."""
    found: dict[str, Able] = {"eth1": Able(), "eth2": Unable()}

    def nic(name: str, queue: int) -> Able:
        found[name].queue = queue
        return found[name]

    monkeypatch.setattr(vmq.nic, "Nic", nic)
    return found


def test_a_nic_with_everything_is_ready(vmq, devices) -> None:
    code, out, err = vmq("nic", "eth1", "--queue", "1", "--json")
    said = json.loads(out)

    assert (code, err) == (0, "")
    assert {name: said[name] for name in ("device", "queue", "ready")} == {
        "device": "eth1", "queue": 1, "ready": True
    }  # fmt: skip
    assert [step["name"] for step in said["steps"]] == [*(trial.name for trial in STEPS), "as-found"]
    assert {tuple(step) for step in said["steps"]} == {("name", "verdict", "found", "remedy", "needed")}
    assert {step["verdict"] for step in said["steps"]} == {"pass", "skip"}
    assert "rule" not in devices["eth1"].log


def test_rules_are_added_only_on_demand(vmq, devices) -> None:
    assert vmq("nic", "eth1", "--rules")[0] == 0
    assert "rule" in devices["eth1"].log


def test_a_nic_that_lacks_something_needed_is_not_ready(vmq, devices) -> None:
    """One line a step, the remedy below it, and in the end which of them are in the way."""
    code, out, err = vmq("nic", "eth2")
    lines = out.splitlines()

    assert (code, err) == (1, "")
    assert "pass  link             needed  up" in lines
    place = lines.index("fail  native           needed  the kernel refuses it: Operation not supported")
    assert lines[place + 1].startswith("      remedy: Another driver or a newer kernel")
    assert (
        lines[-1]
        == "an xdp uplink with direct placement has not all it needs: driver, native, redirect, copy, tags"
    )


def test_a_device_of_the_default_route_is_refused_with_the_reason(vmq, devices) -> None:
    devices["eth1"].routes = ["eth1"]
    code, out, err = vmq("nic", "eth1")

    assert (code, out) == (2, "")
    assert "some drivers reset the link when a program is attached" in err
    assert "--force" in err
    assert devices["eth1"].log == []
    assert vmq("nic", "eth1", "--force")[0] == 0


@pytest.mark.parametrize("queue", ["-1", "x", "9"])
def test_a_queue_that_is_none_is_refused(queue: str, vmq, devices) -> None:
    code, out, err = vmq("nic", "eth1", f"--queue={queue}")
    assert (code, out) == (2, "")
    assert "no receive queue" in err


def test_a_device_that_is_not_there_is_refused(vmq) -> None:
    code, out, err = vmq("nic", "none0", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err)["errors"][0]["wrong"] == "there is no device none0"
