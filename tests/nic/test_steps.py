# SPDX-License-Identifier: Apache-2.0
"""What follows from what a device can: a double that can everything, one that can nothing, and each thing that is in the way."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.nic.doubles import Able, Unable, refused
from vmq.abi.ethernet import mac_number
from vmq.cli.nic import WIDTH
from vmq.errors import VmqError
from vmq.nic import steps
from vmq.nic.steps import STEPS, Result, result_of


def taken(nic: Able, *, rules: bool = True) -> dict[str, Result]:
    results: dict[str, Result] = {}
    for trial in STEPS:
        results[trial.name] = result_of(trial, nic, results, rules=rules)
    return results


def verdicts(results: dict[str, Result]) -> dict[str, list[str]]:
    """Which steps had each verdict."""
    return {
        verdict: [name for name, one in results.items() if one.verdict == verdict]
        for verdict in ("pass", "fail", "skip")
    }


def test_a_nic_that_can_everything_passes_all_but_what_it_does_not_need() -> None:
    nic = Able(queue=2)
    results = taken(nic)

    assert verdicts(results) == {
        "pass": [trial.name for trial in STEPS if trial.name != "generic"],
        "fail": [],
        "skip": ["generic"],
    }
    assert {
        name: one.found for name, one in results.items() if name in ("driver", "interrupts", "iommu")
    } == {
        "driver": "igc, 0000:01:00.0, 2023:889d-8",
        "interrupts": "2: 125 on 0, 126 on 1-3",
        "iommu": "group 12, DMA-FQ",
    }
    assert not any(one.remedy for one in results.values())
    assert nic.on == []
    assert nic.log == [
        "native",
        "native", "bind zero_copy=0 chunk=2048 huge=0",
        "native", "bind zero_copy=1 chunk=4096 huge=0",
        "native", "bind zero_copy=1 chunk=2048 huge=0",
        "native", "bind zero_copy=1 chunk=2048 huge=1",
        "ntuple", "ntuple", "rule",
    ]  # fmt: skip


def test_a_nic_that_can_nothing_fails_with_remedies_and_skips_what_rests_on_it() -> None:
    nic = Unable(virtual="bridge", state="down", mtu=9000)
    nic.limit = 8 << 20
    results = taken(nic)

    assert verdicts(results) == {
        "pass": ["queues", "programs"],
        "fail": ["driver", "link", "mtu", "native", "generic", "redirect", "transmit", "tags", "ntuple", "pinned", "huge-pages"],
        "skip": ["interrupts", "copy", "zero-copy", "zero-copy-guest", "zero-copy-huge", "rule", "iommu"],
    }  # fmt: skip
    assert all(one.remedy for one in results.values() if one.verdict == "fail")
    assert nic.log == ["native", "generic"]
    assert "8 MiB" in results["pinned"].found
    assert results["link"].remedy.startswith("Check the cable")


@pytest.mark.parametrize(
    ("changes", "step", "remedy"),
    [
        ({"up": False}, "link", "ip link set eth1 up"),
        ({"mtu": 1505}, "mtu", "ip link set eth1 mtu 1504, or an mtu of the VMs up to that"),
        ({"programs": {"native": 42}}, "programs", "Stop who put it there, or: ip link set eth1 xdp off"),
        ({"virtual": "bond"}, "driver", "Name the NIC below it"),
    ],
)
def test_what_is_in_the_way_has_the_command_that_removes_it(
    changes: dict[str, Any], step: str, remedy: str
) -> None:
    result = taken(Able(**changes))[step]
    assert (result.verdict, result.remedy) == ("fail", remedy)


def test_beside_another_program_none_is_attached() -> None:
    nic = Able(programs={"generic": 42})
    results = taken(nic)

    assert results["programs"].found == "another program is on it, id 42 (generic)"
    assert {results[name].verdict for name in ("native", "generic", "copy", "zero-copy")} == {"skip"}
    assert nic.log == ["ntuple", "ntuple", "rule"]


def test_a_driver_without_programs_has_copy_mode_behind_it() -> None:
    class Behind(Able):
        def passing(self, mode: str) -> Any:
            return Unable.passing(self, mode) if mode == "native" else super().passing(mode)  # type: ignore[arg-type]

    results = taken(Behind())
    assert [results[name].verdict for name in ("native", "generic", "copy", "zero-copy")] == [
        "fail", "pass", "pass", "skip"
    ]  # fmt: skip
    assert "prepared = true" in results["native"].remedy


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EBUSY, "Stop who uses it"),
        (errno.EPERM, "CAP_NET_ADMIN"),
        (errno.ENETDOWN, "ip link set eth1 up"),
        (errno.ENXIO, "dmesg"),
    ],
)
def test_what_the_kernel_refuses_is_told_in_its_words(code: int, remedy: str) -> None:
    class Refusing(Able):
        def bind(self, *_: Any, **__: Any) -> bool:
            raise refused(code)

    result = taken(Refusing())["copy"]
    assert result.verdict == "fail"
    assert result.found == f"the kernel refuses it: {refused(code).strerror}"
    assert remedy in result.remedy


def test_zero_copy_that_the_driver_does_not_name_says_so() -> None:
    class Silent(Able):
        def abilities(self) -> frozenset[str]:
            return frozenset({"basic", "redirect"})

        def bind(self, *_: Any, zero_copy: bool, **__: Any) -> bool:
            if zero_copy:
                raise refused(errno.EOPNOTSUPP)
            return False

    results = taken(Silent())
    assert results["zero-copy"].found.endswith("; the driver does not say that it can")
    assert results["transmit"].verdict == "fail"


def test_a_socket_that_copies_is_no_zero_copy() -> None:
    class Copying(Able):
        def bind(self, *_: Any, **__: Any) -> bool:
            return False

    assert taken(Copying())["zero-copy"].found == "a socket was bound, but it copies"


@pytest.mark.parametrize("step", ["redirect", "transmit"])
def test_an_old_kernel_cannot_tell_and_nothing_is_claimed(step: str) -> None:
    class Old(Able):
        def abilities(self) -> frozenset[str] | None:
            return None

    assert taken(Old())[step].verdict == "skip"


def test_without_leave_no_rule_is_added() -> None:
    nic = Able()
    result = taken(nic, rules=False)["rule"]
    assert result.verdict == "skip"
    assert "--rules" in result.found
    assert "rule" not in nic.log


def test_a_rule_that_is_read_otherwise_is_no_rule() -> None:
    class Other(Able):
        def try_rule(self, mac: int) -> tuple[int, tuple[int, int]]:
            return 3, (mac, self.queue + 1)

    assert taken(Other())["rule"].verdict == "fail"
    assert mac_number(steps.TRIED) & 2, "a locally administered address"


def test_an_error_of_ours_is_a_result_too() -> None:
    def broken(*_: Any) -> Result:
        raise VmqError("the verifier refuses it", "Report it for NAME")

    take: Callable[..., Result] = broken
    result = result_of(steps.Trial("x", True, take), Able(), {}, rules=False)
    assert result == ("fail", "the verifier refuses it", "Report it for eth1")


def test_names_are_unique_and_what_is_needed_is_what_the_uplink_uses() -> None:
    names = [trial.name for trial in STEPS]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= WIDTH
    assert [trial.name for trial in STEPS if trial.needed] == [
        "driver", "link", "mtu", "queues", "programs", "native", "redirect", "copy", "tags", "pinned"
    ]  # fmt: skip
