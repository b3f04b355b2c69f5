# SPDX-License-Identifier: Apache-2.0
"""All steps in order, signals between them, refusals before them, and the comparison behind them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.nic.doubles import Able, Unable
from tests.vm.lab.netns import Namespace
from vmq.abi import bpf
from vmq.bpf.assembler import R0, Code
from vmq.bpf.link import Link
from vmq.bpf.program import Program
from vmq.errors import ConfigError, HostError
from vmq.nic import examination
from vmq.nic.examination import LAST, Step, examine, held, refuse
from vmq.nic.steps import STEPS, Result, Trial, passed
from vmq.uplink.link import index_of


def test_every_step_is_told_and_the_comparison_is_last() -> None:
    steps = list(examine(Able(), rules=True))

    assert [step.name for step in steps] == [*(trial.name for trial in STEPS), LAST]
    assert not any(step.in_the_way for step in steps)
    assert steps[0].record() == {
        "name": "driver",
        "verdict": "pass",
        "found": "igc, 0000:01:00.0, 2023:889d-8",
        "remedy": "",
        "needed": True,
    }


def test_what_is_in_the_way_is_what_is_needed_and_did_not_pass() -> None:
    steps = list(examine(Unable(), rules=False))
    assert [step.name for step in steps if step.in_the_way] == [
        "driver",
        "native",
        "redirect",
        "copy",
        "tags",
    ]
    assert not Step("zero-copy", "fail", "", "", needed=False).in_the_way


def test_a_device_that_is_other_than_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "SETTLE_SECONDS", 0.0)

    def leaves_one(nic: Any, _: Any) -> Result:
        nic.on.append("a program")
        return passed("done")

    last = list(examine(Able(), rules=False, steps=[Trial("leaves", False, leaves_one)]))[-1]
    assert (last.name, last.verdict) == (LAST, "fail")
    assert last.found == "it is not as it was found: programs"
    assert last.in_the_way


def test_a_link_that_comes_back_late_is_waited_for() -> None:
    nic, looks = Able(), iter([["up"], ["resetting"], ["resetting"], ["up"]])
    nic.standing = lambda: {"state": next(looks)}  # type: ignore[method-assign]
    (last,) = examine(nic, rules=False, steps=[])
    assert last.verdict == "pass"


@pytest.fixture
def handlers() -> Iterator[dict[signal.Signals, Any]]:
    """The usual ones: a shell has those ignore the keyboard whom it started beside itself."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in examination.SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_who_ignores_a_signal_still_does(handlers: dict[signal.Signals, Any]) -> None:
    """As nohup has it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with held() as look:
        os.kill(os.getpid(), signal.SIGHUP)
        look()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)]
)  # fmt: skip
def test_a_signal_waits_until_the_step_is_over(
    number: signal.Signals, raised: type[BaseException], handlers: dict[signal.Signals, Any]
) -> None:
    nic, before = Able(), signal.getsignal(number)

    def interrupted(one: Any, _: Any) -> Result:
        with one.passing("native"):
            os.kill(os.getpid(), number)
            one.log.append("went on")
        return passed("done")

    def never(*_: Any) -> Result:
        raise AssertionError("a step after the signal")

    steps = [Trial("first", False, interrupted), Trial("second", False, never)]
    with pytest.raises(raised) as ended, held() as look:
        list(examine(nic, rules=False, look=look, steps=steps))

    assert (nic.on, nic.log) == ([], ["native", "went on"])
    assert signal.getsignal(number) is before
    if raised is SystemExit:
        assert ended.value.code == 128 + number  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"said": None}, "there is no device eth1"),
        ({"said": Able(kind=772).said}, "eth1 is no Ethernet device"),
        ({"missing": ["CAP_BPF"]}, "it takes CAP_BPF"),
        ({"routes": ["eth1"]}, "the default route leads over eth1: some drivers reset the link"),
        ({"routes": ["br0"]}, "the default route leads by br0 over eth1"),
    ],
)
def test_nothing_is_tried_where_nothing_can_or_may_be(changes: dict[str, Any], words: str) -> None:
    nic = Able()
    vars(nic).update(changes)
    with pytest.raises(HostError) as error:
        refuse(nic, force=False)
    assert words in error.value.wrong
    assert error.value.exit_code == 2
    assert nic.log == []


def test_who_says_force_may_try_the_device_of_the_default_route() -> None:
    nic = Able()
    nic.routes = ["eth1"]
    refuse(nic, force=True)


def test_a_queue_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no receive queue 4: eth1 has 4"):
        refuse(Able(queue=4), force=False)
    refuse(Able(queue=3), force=False)


# --- a veth, by the command itself


def asked(host: Namespace, *words: str) -> dict[str, Any]:
    """Each step's record by its name, and `ready`."""
    said = json.loads(
        host.run(sys.executable, "-m", "vmq", "nic", "v0", "--json", *words, check=False, timeout=110)
    )
    return {"ready": said["ready"], **{one["name"]: one for one in said["steps"]}}


def stands(host: Namespace) -> list[str]:
    """The device as other programs tell it."""
    link = host.run("ip", "-details", "link", "show", "v0")
    return [link, *(host.run("ethtool", option, "v0", check=False) for option in ("-k", "-l", "-n"))]


@pytest.mark.root
def test_a_veth_has_what_direct_placement_needs_and_is_left_as_it_was() -> None:
    with Namespace("host") as host, Namespace("peer") as peer:
        host.veth("v0", peer, "v1")
        before = stands(host)
        said = asked(host, "--rules")
        after = stands(host)

    assert said["ready"] is True
    passes = ("driver", "link", "mtu", "queues", "programs", "native", "redirect", "copy", "tags", "as-found")
    assert {name: said[name]["verdict"] for name in passes} == dict.fromkeys(passes, "pass")
    for name in ("zero-copy", "zero-copy-guest", "ntuple"):
        assert said[name]["verdict"] == "fail"
        assert said[name]["remedy"]
    assert [said[name]["verdict"] for name in ("generic", "interrupts", "rule", "iommu")] == ["skip"] * 4
    assert "Operation not supported" in said["zero-copy"]["found"]
    assert "rx-vlan-hw-parse" in said["tags"]["found"]
    assert after == before


@pytest.mark.root
def test_a_tap_takes_programs_and_has_no_carrier_while_nobody_holds_it() -> None:
    with Namespace("host") as host:
        host.run("ip", "tuntap", "add", "dev", "v0", "mode", "tap")
        host.up("v0")
        before = stands(host)
        said = asked(host)
        after = stands(host)

    assert said["ready"] is False
    assert (said["link"]["verdict"], said["link"]["found"]) == ("fail", "it is down")
    assert said["driver"]["found"] == "tun, tap; an uplink on it needs prepared = true"
    for name in ("native", "copy", "redirect", "transmit", "tags", "as-found"):
        assert said[name]["verdict"] == "pass"
    assert after == before


@pytest.mark.root
def test_a_driver_that_refuses_a_program_has_the_kernels_behind_it() -> None:
    """A veth takes none while frames of its other end do not fit into a page."""
    with Namespace("host") as host, Namespace("peer") as peer:
        host.veth("v0", peer, "v1")
        peer.run("ip", "link", "set", "v1", "mtu", "9000")
        said = asked(host)

    assert said["ready"] is False
    assert said["native"]["remedy"] == "A smaller MTU, here or at its other end"
    assert [said[name]["verdict"] for name in ("native", "generic", "copy", "zero-copy", "as-found")] == [
        "fail", "pass", "pass", "skip", "pass"
    ]  # fmt: skip
    assert "generic program" in said["copy"]["found"]


@pytest.mark.root
def test_another_program_is_found_and_stays() -> None:
    code = Code()
    code.let(R0, "=", bpf.XDP_PASS)
    code.exit()
    with Namespace("host") as host, Namespace("peer") as peer:
        host.veth("v0", peer, "v1")
        index = host.call(lambda: index_of("v0"))
        with (
            Program(bpf.BPF_PROG_TYPE_XDP, "foreign", code) as program,
            host.call(lambda: Link(program, index, flags=bpf.XDP_FLAGS_DRV_MODE)),
        ):
            before = stands(host)
            (shown,) = json.loads(host.run("ip", "-json", "link", "show", "v0"))
            said = asked(host)
            after = stands(host)

    assert said["ready"] is False
    assert said["programs"]["found"] == f"another program is on it, id {shown['xdp']['prog']['id']} (native)"
    assert {said[name]["verdict"] for name in ("native", "copy", "zero-copy")} == {"skip"}
    assert after == before


@pytest.mark.root
def test_the_device_of_the_default_route_is_refused_unless_forced() -> None:
    """Also when the route leads by a bridge that the device is a port of."""
    with Namespace("host") as host, Namespace("peer") as peer:
        host.veth("v0", peer, "v1")
        host.run("ip", "link", "add", "br0", "type", "bridge")
        host.run("ip", "link", "set", "v0", "master", "br0")
        host.up("br0")
        host.address("br0", "10.0.0.1/24")
        host.run("ip", "route", "add", "default", "via", "10.0.0.2")
        refusal = host.run(sys.executable, "-m", "vmq", "nic", "v0", check=False)
        said = asked(host, "--force")

    assert refusal.startswith("vmq nic: the default route leads by br0 over v0: some drivers reset the link")
    assert "--force" in refusal
    assert said["native"]["verdict"] == "pass"
    assert said["as-found"]["verdict"] == "pass"


@pytest.mark.root
def test_a_command_that_is_ended_half_way_leaves_the_device_as_it_was() -> None:
    """It ends behind the step that it is at; on a machine that is fast enough, that was the last one."""
    with Namespace("host") as host, Namespace("peer") as peer:
        host.veth("v0", peer, "v1")
        before = stands(host)
        words = host.command([sys.executable, "-m", "vmq", "nic", "v0"])
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("pass  driver")
            process.send_signal(signal.SIGTERM)
            _, code = process.communicate(timeout=60), process.returncode
        after = stands(host)

    assert code in (128 + signal.SIGTERM, 0)
    assert after == before
