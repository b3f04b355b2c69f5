# SPDX-License-Identifier: Apache-2.0
"""What no table can judge alone: clashes between tables, and names that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmq.config import parse
from vmq.errors import ConfigErrors, HostError


def vm(name: str, mac: str, **keys: str | int) -> str:
    more = "".join(f"{key} = {value!r}\n" for key, value in keys.items())
    return f"[vm.{name}]\nmac = '{mac}'\n{more}"


def tap(name: str, device: str, more: str = "") -> str:
    return f"[uplink.{name}]\nkind = 'tap'\ndevice = '{device}'\n{more}\n"


def wrong(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as refused:
        parse(text, "/f", available={0, 1, 4})
    return [line.removeprefix("/f: ") for line in str(refused.value).splitlines()]


A, B = "52:54:00:00:00:01", "52:54:00:00:00:02"


def test_a_mac_of_two_vms_of_one_segment_is_refused() -> None:
    """A frame has one owner: (uplink, VLAN, MAC) is unique."""
    assert wrong(vm("a", A) + vm("b", A)) == [
        (
            f'[vm.b] mac: "{A}" without a VLAN belongs to [vm.a] already. '
            "Remedy: Give one of the two another address, VLAN or uplink"
        )
    ]
    assert wrong(vm("a", A, vlan=5) + vm("b", A.upper(), vlan=5)) == [
        (
            f'[vm.b] mac: "{A}" of VLAN 5 belongs to [vm.a] already. '
            "Remedy: Give one of the two another address, VLAN or uplink"
        )
    ]


def test_a_mac_may_come_again_in_another_segment() -> None:
    """VMs of one uplink and VLAN are one segment; others cannot hear it."""
    config = parse(
        tap("lan", "t0") + vm("a", A) + vm("b", A, vlan=1) + vm("c", A, uplink="lan") + vm("d", B), "/f"
    )

    assert list(config.vms) == ["a", "b", "c", "d"]


def test_a_nic_queue_is_one_vms_on_an_xdp_uplink() -> None:
    xdp = "[uplink.wan]\nkind = 'xdp'\ndevice = 'eth1'\n"
    assert wrong(tap("lan", "t0") + vm("a", A, uplink="lan", nic_queue=3) + vm("b", B, nic_queue=3)) == [
        f"[vm.{name}] nic_queue: its uplink is not of kind xdp. Remedy: Choose such an uplink, or remove it"
        for name in "ab"
    ]
    assert wrong(
        xdp + "".join(vm(name, mac, uplink="wan", nic_queue=3) for name, mac in (("a", A), ("b", B)))
    ) == [
        (
            "[vm.b] nic_queue: queue 3 of [uplink.wan] belongs to [vm.a] already. "
            "Remedy: Give each VM a queue of its own"
        )
    ]


def test_an_uplink_that_does_not_exist_is_named_with_those_that_do() -> None:
    """The remedy is in reach of who reads it."""
    assert wrong(tap("lan", "t0") + vm("a", A, uplink="wan")) == [
        "[vm.a] uplink: there is no [uplink.wan]. Remedy: Add that table, or name one of the file: lan"
    ]
    assert wrong(vm("a", A, uplink="wan"))[0].endswith("name one of the file: no uplink yet")


def test_a_processor_must_exist_and_be_the_engines() -> None:
    """What cannot be pinned to is refused before anything starts."""
    assert wrong("[engine]\nprocessors = '1-3,4'\n") == [
        (
            "[engine] processors: there is no processor 2-3: this process may use 0-1,4. "
            "Remedy: Name processors that exist"
        )
    ]
    assert wrong(vm("a", A, processor=2)) == [
        (
            "[vm.a] processor: there is no processor 2: this process may use 0-1,4. "
            "Remedy: Name processors that exist"
        )
    ]
    assert wrong("[engine]\nprocessors = '1,4'\n" + vm("a", A, processor=0)) == [
        (
            "[vm.a] processor: 0 is not one of the engine's, 1,4. "
            "Remedy: Add it to processors of [engine], or name one of those"
        )
    ]


def test_processors_of_an_uplink_lie_between_the_engines_and_its_vms() -> None:
    """A VM's own is one of its uplink's, those are of the engine's, and all exist."""
    assert wrong(tap("lan", "t0", "processors = '1-2'")) == [
        (
            "[uplink.lan] processors: there is no processor 2: this process may use 0-1,4. "
            "Remedy: Name processors that exist"
        )
    ]
    assert wrong("[engine]\nprocessors = '0-1'\n" + tap("lan", "t0", "processors = '1,4'")) == [
        (
            "[uplink.lan] processors: 4 is not one of the engine's, 0-1. "
            "Remedy: Add it to processors of [engine], or name one of those"
        )
    ]
    assert wrong(tap("lan", "t0", "processors = '1,4'") + vm("a", A, uplink="lan", processor=0)) == [
        (
            "[vm.a] processor: 0 is not one of those of [uplink.lan], 1,4. "
            "Remedy: Add it to processors of [uplink.lan], or name one of those"
        )
    ]
    right = tap("lan", "t0", "processors = '1,4'") + vm("a", A, uplink="lan", processor=4) + vm("b", B)
    assert parse(right, "/f", available={0, 1, 4}).uplinks["lan"].processors == (1, 4)


def test_processors_are_not_judged_without_a_list_of_them() -> None:
    """A file for another host can be read here."""
    assert parse("[engine]\nprocessors = '700'\n" + vm("a", A, processor=700), "/f").engine.processors == (
        700,
    )


def test_a_socket_has_one_owner_the_api_included() -> None:
    """Two that listen on one path would silently replace each other."""
    assert wrong(vm("a", A, socket="/r/x") + vm("b", B, socket="/r/../r/x")) == [
        '[vm.b] socket: "/r/x" is [vm.a] socket already. Remedy: Give each socket its own path'
    ]
    assert wrong(vm("api", A)) == [
        '[vm.api] socket: "/run/vmq/api.sock" is [engine] api already. Remedy: Give each socket its own path'
    ]


def test_a_socket_of_qemu_serves_one_vm_port() -> None:
    """QEMU's QMP socket takes one client: the second would wait without a word."""
    both = vm("a", A, qmp="/r/q") + vm("b", B, qmp="/r/q")

    assert wrong(both) == ['[vm.b] qmp: "/r/q" is [vm.a] qmp already. Remedy: Give each socket its own path']
    assert "[vm.a] qmp: " in wrong(vm("a", A, qmp="/" + "x" * 107))[0]


def test_a_device_of_qemu_is_named_beside_its_socket() -> None:
    """A key that has no effect is a mistake."""
    assert wrong(vm("a", A, qmp_nic="net0")) == [
        "[vm.a] qmp_nic: says nothing without qmp. Remedy: Set qmp too, or remove it"
    ]


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    """unix(7) "Address format": 107 bytes and a NUL; bytes, not characters."""
    longest = "/" + "x" * 106

    assert parse(vm("a", A, socket=longest), "/f").vms["a"].socket == longest
    assert "has 108 bytes, and the path of a socket at most 107" in wrong(vm("a", A, socket=longest + "x"))[0]
    assert "has 119 bytes" in wrong(vm("a", A, socket="/" + "é" * 59))[0]


def test_a_device_belongs_to_one_uplink() -> None:
    """Two uplinks of one device would each see the frames of the other."""
    assert wrong(tap("a", "t0") + "[uplink.b]\nkind = 'packet'\ndevice = 't0'\n") == [
        '[uplink.b] device: "t0" is the device of [uplink.a] already. Remedy: Give each uplink its own device'
    ]
    assert wrong(tap("a", "t0", "bridge = 't0'")) == [
        "[uplink.a] bridge: the device itself. Remedy: Name the bridge that the device joins"
    ]


def test_a_capture_must_be_readable(tmp_path: Path) -> None:
    """The host refuses it, the operator is told: one line."""
    with pytest.raises(ConfigErrors) as refused:
        parse("[uplink.c]\nkind = 'pcap'\nread = 'none.pcap'\n", str(tmp_path / "f"))

    (error,) = refused.value.errors
    assert isinstance(error, HostError)
    assert error.where == f"{tmp_path}/f: [uplink.c] read"
    assert error.wrong.endswith(" cannot be read: No such file or directory")
    assert error.remedy == "Give the path of a readable capture"


def test_a_capture_is_read_relative_to_the_file(tmp_path: Path) -> None:
    """A configuration and its captures move together."""
    (tmp_path / "in.pcap").write_bytes(b"\0")

    config = parse("[uplink.c]\nkind = 'pcap'\nread = 'in.pcap'\nwrite = 'out.pcap'\n", str(tmp_path / "f"))

    assert config.uplinks["c"].read == str(tmp_path / "in.pcap")  # type: ignore[union-attr]


def test_a_capture_is_never_written_over_one_in_use(tmp_path: Path) -> None:
    """Neither over the one that is read, nor by two uplinks."""
    (tmp_path / "x").write_bytes(b"\0")
    text = f"[uplink.a]\nkind = 'pcap'\nread = '{tmp_path}/x'\nwrite = '{tmp_path}/x'\n"

    (line,) = wrong(text)

    assert line.startswith("[uplink.a] write: ")
    assert "is read of [uplink.a] already. Remedy: Write to a file of its own" in line
    assert wrong("[uplink.a]\nkind='pcap'\nwrite='/o'\n[uplink.b]\nkind='pcap'\nwrite='/o'\n") == [
        '[uplink.b] write: "/o" is write of [uplink.a] already. Remedy: Write to a file of its own'
    ]
    assert wrong("[uplink.a]\nkind='pcap'\n") == [
        "[uplink.a]: neither read nor write is set. Remedy: Set read, write or both"
    ]
