# SPDX-License-Identifier: Apache-2.0
"""What comes from the wire (H27): no guest sent it, no guest can be blamed, and none may suffer.

A capture that is replayed without end carries what no kernel would send; a veth pair and a packet socket show the
same through a real device. Offload metadata that lies (H27.5) is told by a kernel, which does not lie here: the
kernels' own tests do (tests/dataplane/test_packet.py, test_tap.py).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile.arena import MACS, PATIENCE, frame, until
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace
from vmq.guest.guest import Guest
from vmq.guest.traffic import Traffic

WIRE = "02:00:00:00:00:77"  # a station at the other end
GROUP = "01:00:5e:00:00:05"


def tagged(data: bytes, tci: int, tpid: int = 0x8100) -> bytes:
    return data[:12] + tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") + data[12:]


def packet(version_ihl: int = 0x45, total: int = 60, fragment: int = 0, to: str = "attacker") -> bytes:
    """A frame with an IPv4 header that may lie."""
    header = struct.pack(">BBHHHBBHII", version_ihl, 0, total, 7, fragment, 64, 17, 0, 0x0A000001, 0x0A000002)
    return frame(to, WIRE)[:12] + b"\x08\0" + header + bytes(range(40))


GOOD = {
    "h27_1_14_bytes": frame("attacker", WIRE, size=14),
    "h27_1_59_bytes": frame("attacker", WIRE, size=59),
    "h27_1_60_bytes": frame("attacker", WIRE, size=60),
    "h27_1_1514_bytes": frame("attacker", WIRE, size=1514),
    "h27_1_1518_bytes_with_a_tag": tagged(frame("attacker", WIRE, size=1514), 3 << 13),
    "h27_1_priority_tag": tagged(frame("attacker", WIRE, 2), 5 << 13),
    "h27_1_service_tag": tagged(frame("attacker", WIRE, 3), 5, 0x88A8),
    "h27_1_tag_behind_a_priority_tag": tagged(tagged(frame("attacker", WIRE, 4), 5), 0),
    "h27_1_broadcast": frame("ff:ff:ff:ff:ff:ff", WIRE, 5),
    "h27_1_multicast": frame(GROUP, WIRE, 6),
    "h27_2_header_of_0_words": packet(0x40),
    "h27_2_header_of_4_words": packet(0x44),
    "h27_2_header_of_15_words": packet(0x4F),
    "h27_2_version_0": packet(0x05),
    "h27_3_total_length_0": packet(total=0),
    "h27_3_total_length_65535": packet(total=65535),
    "h27_4_first_fragment": packet(fragment=0x2000),
    "h27_4_last_fragment": packet(fragment=0x00FF),
    "h27_4_fragment_of_8_bytes": packet(fragment=0x2001)[:42],
}
IN_VLAN = frame("third", WIRE, 8)  # to a VM of VLAN 5
BAD = {
    "h27_1_vlan_of_nobody": tagged(frame("attacker", WIRE), 6),
    "h27_1_vlan_of_another": tagged(frame("attacker", WIRE), 5),
    "h27_1_untagged_to_a_vlan": frame("third", WIRE),
    "h27_1_address_of_nobody": frame("02:00:00:00:00:99", WIRE),
    "h27_1_link_local": frame("01:80:c2:00:00:0e", WIRE),
    "h27_1_1515_bytes": frame("attacker", WIRE, size=1515),
    "h27_1_9018_bytes": frame("attacker", WIRE, size=9018),
    "h27_1_65535_bytes": frame("attacker", WIRE, size=65535),
}
UNREADABLE = [frame("attacker", WIRE, size=size) for size in range(14)]
UNREADABLE += [tagged(frame("attacker", WIRE), 0)[:size] for size in range(14, 18)]


def capture(path: Path, frames: Sequence[bytes]) -> Path:
    """A capture file of these frames."""
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)
    for one in frames:
        data += struct.pack("<IIII", 0, 0, len(one), len(one)) + one
    path.write_bytes(data)
    return path


VMS = "".join(
    f'[vm.{name}]\nsocket = "{{folder}}/{name}.sock"\nuplink = "wire"\nmac = "{MACS[name]}"\n{keys}\n'
    for name, keys in (("attacker", ""), ("third", "vlan = 5"))
)


@contextmanager
def replaying(folder: Path, frames: Sequence[bytes]) -> Iterator[EngineProcess]:
    path = capture(folder / "wire.pcap", frames)
    uplink = f'[uplink.wire]\nkind = "pcap"\nread = "{path}"\nrepeat = true\nmtu = 1500\n'
    with EngineProcess(folder, uplink + VMS) as engine:
        yield engine


def guest(engine: EngineProcess, name: str, **options) -> Guest:
    return Guest(
        engine.folder / f"{name}.sock", MACS[name], **{"room": 1 << 17, "timeout": PATIENCE} | options
    )


def test_h27_1_to_h27_4_a_replay_of_everything_that_is_wrong(tmp_path: Path):
    """What the engine need not parse passes unchanged and in order; everything else has a name; nobody stops."""
    frames = [
        *UNREADABLE,
        *(x for pair in zip(BAD.values(), list(GOOD.values())[: len(BAD)], strict=True) for x in pair),
    ]
    good = list(GOOD.values())
    frames += [*good[len(BAD) :], tagged(IN_VLAN, 5)]
    with replaying(tmp_path, frames) as engine:
        with guest(engine, "attacker") as one, guest(engine, "third") as third:
            with Traffic(one, good) as ours, Traffic(third, [IN_VLAN], vlan=5) as theirs:
                until(
                    lambda: ours.counters()["verified"] > 3 * len(good) and theirs.counters()["verified"] > 3
                )
            for counters in (ours.counters(), theirs.counters()):
                assert [counters[name] for name in ("wrong", "stray", "broken", "bad")] == [0] * 4
                assert counters["out_of_place"] <= 1  # the first, when it came in the middle
            row = engine.show("uplinks")["wire"]
            assert sum(row["refused"].values()) == len(UNREADABLE)
            assert set(row["drops"]) == {"default_queue", "link_local"}
            assert set(engine.show("vms")["attacker"]["drops"]) <= {
                "to_guest_too_long",
                "to_guest_not_running",
            }
            # Nobody drains now: the replay waits, and the books are closed.
            until(lambda: balanced(engine), "every frame forwarded or named")
        assert {vm["state"] for vm in engine.show("vms").values()} <= {"listening", "running", "connected"}


def balanced(engine: EngineProcess) -> bool:
    row = engine.show("uplinks")["wire"]
    queues = engine.show("queues").values()
    return bool(
        row["frames_from_wire"] == row["forwarded"] + sum(row["drops"].values())
        and row["copies"] == row["waiting"] + sum(queue["offered_to_guest"] for queue in queues)
    )


@pytest.mark.parametrize("mergeable", [True, False])
def test_h27_6_a_long_frame_toward_small_buffers_is_split_or_dropped(tmp_path: Path, mergeable: bool):
    """Over mergeable buffers it is byte for byte the same; into one that is too small it is not cut."""
    long, short = frame("attacker", WIRE, size=1514), frame("attacker", WIRE, 2, size=60)
    small = {"mergeable": mergeable, "buffer_bytes": 128}
    with replaying(tmp_path, [long, short]) as engine, guest(engine, "attacker", **small) as one:
        packets = one.receive_packets(20, PATIENCE)
        if mergeable:
            assert {(packet.frame, packet.chains) for packet in packets} == {(long, 12), (short, 1)}
        else:
            assert {packet.frame for packet in packets} == {short}
            assert engine.show("vms")["attacker"]["drops"]["to_guest_too_long"] > 0


# --- a real device --------------------------------------------------------------------------------------------


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[tuple[EngineProcess, Namespace]]:
    """An engine on one end of a veth pair, a host at the other."""
    with Namespace("engine") as near, Namespace("host") as far:
        for end in (near, far):
            end.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        near.veth("wire0", far, "host0")
        config = '[uplink.wire]\nkind = "packet"\ndevice = "wire0"\n' + VMS
        with EngineProcess(tmp_path, config, near) as engine:
            yield engine, far


@pytest.mark.root
def test_h27_1_to_h27_4_frames_of_a_hostile_station(wire: tuple[EngineProcess, Namespace]):
    """The same frames through a packet socket; the kernel itself refuses what is shorter than a header."""
    engine, far = wire
    good = [data for data in GOOD.values() if len(data) > 14]

    def sender() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind(("host0", 0))
        return made

    with guest(engine, "attacker") as one, guest(engine, "third") as third, far.call(sender) as station:
        for lap in range(3):
            for data in BAD.values():
                if len(data) < 1500:  # the kernel itself sends no longer ones
                    station.send(data)
            for data in good:
                station.send(data)
            station.send(tagged(IN_VLAN, 5))
            assert one.receive(len(good), PATIENCE) == good, lap
            assert third.receive(1, PATIENCE) == [IN_VLAN]
        row = engine.show("uplinks")["wire"]
        assert row["drops"] == {"default_queue": 12, "link_local": 3}
        assert row["frames_from_wire"] == row["forwarded"] + 15


@pytest.mark.root
def test_h27_7_a_super_frame_toward_a_guest_that_takes_none_is_cut(wire: tuple[EngineProcess, Namespace]):
    """Segmented in software, and counted: no guest here has agreed to GUEST_TSO or UFO."""
    engine, far = wire
    far.address("host0", "10.9.0.1/24")
    far.run("ip", "neigh", "add", "10.9.0.2", "lladdr", MACS["attacker"], "dev", "host0")
    data = bytes(range(256)) * 40
    with guest(engine, "attacker") as one:
        with far.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
            sender.sendto(data, ("10.9.0.2", 9))
        frames = one.receive(-(-len(data) // 1000), PATIENCE)
        assert all(len(one) <= 1042 for one in frames)
        assert b"".join(one[42:] for one in frames) == data
        assert engine.show("uplinks")["wire"]["segmented"] == 1
