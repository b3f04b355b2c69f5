# SPDX-License-Identifier: Apache-2.0
"""What QEMU answers, as records; which of its devices is meant."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vmq.abi.ethernet import mac_number
from vmq.qmp.lists import RxFilter, RxFilterInfo, RxFilterInfos, pick, printable

# Printed by QEMU 7.2 for a Debian guest with a macvlan on its device.
QEMU = """[{"promiscuous": false, "name": "net0", "broadcast-allowed": true, "unicast": "normal", "vlan-table": [0, 5],
"multicast-overflow": false, "unicast-table": ["0e:fd:00:00:00:02"], "multicast": "normal", "vlan": "normal",
"unicast-overflow": false, "main-mac": "52:54:00:00:00:01",
"multicast-table": ["01:00:5e:00:00:01", "33:33:00:00:00:01"]}]"""
ONE, TWO, THREE = (mac_number(f"52:54:00:00:00:0{number}") for number in (1, 2, 3))


def decoded(text: str) -> list[RxFilter]:
    return [RxFilter.of(info) for info in msgspec.json.decode(text, type=RxFilterInfos)]


def test_an_answer_of_qemu_becomes_a_record() -> None:
    """Addresses in the byte order of the filter table; what is normal is not mentioned."""
    assert decoded(QEMU) == [
        RxFilter(
            name="net0",
            main=ONE,
            unicast=(mac_number("0e:fd:00:00:00:02"),),
            multicast=(mac_number("01:00:5e:00:00:01"), mac_number("33:33:00:00:00:01")),
            vlans=(0, 5),
        )
    ]


@pytest.mark.parametrize(("vlan", "vlans"), [("normal", (5,)), ("all", ()), ("none", ())])
def test_vlans_count_when_the_guest_has_chosen_them(vlan: str, vlans: tuple[int, ...]) -> None:
    """A driver without VLAN filters is given all 4096: that is no wish."""
    assert (
        decoded(QEMU.replace('"vlan": "normal"', f'"vlan": "{vlan}"').replace("[0, 5]", "[5]"))[0].vlans
        == vlans
    )


@pytest.mark.parametrize(
    ("before", "after", "member"),
    [
        ('"promiscuous": false', '"promiscuous": true', "everything"),
        ('"unicast": "normal"', '"unicast": "all"', "everything"),
        ('"unicast-overflow": false', '"unicast-overflow": true', "overflow"),
    ],
)
def test_what_a_guest_asks_for_beyond_its_list_is_kept(before: str, after: str, member: str) -> None:
    """Said in the row of the VM, never obeyed."""
    assert not getattr(decoded(QEMU)[0], member)
    assert getattr(decoded(QEMU.replace(before, after))[0], member)


@pytest.mark.parametrize(
    "wrong",
    [
        QEMU.replace("52:54:00:00:00:01", "52:54:00:00:00:0g"),
        QEMU.replace("52:54:00:00:00:01", "52:54:00:00:00:01\\n"),
        QEMU.replace("52:54:00:00:00:01", "52:54:00:00:00:+1"),
        QEMU.replace("[0, 5]", "[4096]"),
        QEMU.replace("[0, 5]", "[-1]"),
        QEMU.replace("[0, 5]", '"all"'),
        QEMU.replace("[0, 5]", str([1] * 4097)),
        QEMU.replace('"vlan": "normal"', '"vlan": "some"'),
        QEMU.replace('"name": "net0"', '"name": 0'),
        QEMU.replace('"name": "net0"', f'"name": "{"x" * 1025}"'),
        QEMU.replace('["0e:fd:00:00:00:02"]', str(["0e:fd:00:00:00:02"] * 1025).replace("'", '"')),
        '[{"name": "net0"}]',
        f"[{', '.join([QEMU.strip('[]')] * 257)}]",
        '{"name": "net0"}',
    ],
)
def test_an_answer_that_breaks_a_bound_is_refused_whole(wrong: str) -> None:
    """A peer that lies once is not believed in part."""
    with pytest.raises(msgspec.ValidationError):
        decoded(wrong)


def test_members_of_later_versions_are_passed_over() -> None:
    """QEMU adds members."""
    assert decoded('[{"name": "n", "main-mac": "52:54:00:00:00:01", "colour": [1]}]') == [RxFilter("n", ONE)]


def test_text_of_a_peer_leaves_the_terminal_alone() -> None:
    """Names and reasons are shown in tables and logs."""
    assert printable("net\x1b[2J\n\ud800") == "net?[2J??"
    assert len(printable("x" * 5000)) == 80
    assert RxFilter.of(RxFilterInfo(name="a\rb", main_mac="52:54:00:00:00:01")).name == "a?b"


A, B, C = RxFilter("a", ONE), RxFilter("b", TWO), RxFilter("c", THREE, unicast=(ONE,))


@pytest.mark.parametrize(
    ("devices", "configured", "before", "found"),
    [
        ([], {ONE}, None, None),
        ([B], {ONE}, None, B),  # the only one, whatever address the guest gave it
        ([A, B], {ONE}, None, A),
        ([B, C], {ONE}, None, C),  # configured, but not the device's own
        ([A, C], {ONE}, None, A),  # its own goes before a table's
        ([A, B], {THREE}, None, None),
        ([A, B], {THREE}, "b", B),  # it had a configured address before
        ([A, B], {ONE}, "b", A),
        ([A, B], {ONE, TWO}, None, None),  # two VM ports, or a mistake: not to be guessed
        ([A, B], {ONE, TWO}, "b", B),
        ([A, B], {THREE}, "gone", None),
    ],
)
def test_the_device_of_a_vm_port_is_told_by_its_addresses(
    devices: list[RxFilter], configured: set[int], before: str | None, found: Any
) -> None:
    """Without qmp_nic."""
    assert pick(devices, configured, before) == found
