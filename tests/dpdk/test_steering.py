# SPDX-License-Identifier: Apache-2.0
"""Eight front-ends in one testpmd: a frame reaches the one queue whose filter names its MAC and VLAN, and
no other (S1.1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dpdk.frames import BROADCAST, difference, frame, read_capture, write_capture
from tests.dpdk.lab import Testpmd, pcap, until, virtio_user
from tests.dpdk.wire import HOST, engine_text, ports, wired
from tests.vm.lab.engine import EngineProcess

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(180)]

# Seven addresses, eight VLANs: g0 and g7 share an address, so only the VLAN tells them apart.
VMS = {f"g{number}": f"52:54:00:00:02:{number % 7:02x}" for number in range(8)}
VLANS = {f"g{number}": 100 + number for number in range(8)}
OWNER: dict[tuple[str, int | None], str] = {(VMS[name], VLANS[name]): name for name in VMS}
STRANGER = "52:54:00:00:02:ff"


def untagged(one: bytes) -> bytes:
    return one[:12] + one[16:]


def test_every_pair_of_mac_and_vlan_reaches_the_queue_that_names_it(tmp_path: Path) -> None:
    """All MACs in all VLANs, a stranger, an unknown VLAN, no tag, and broadcast in each VLAN; byte for byte."""
    destinations = [
        (mac, vlan)
        for mac in (*dict.fromkeys(VMS.values()), STRANGER, BROADCAST)
        for vlan in (None, 99, *VLANS.values())
    ]
    frames: list[bytes] = []
    wanted: dict[str, list[bytes]] = {name: [] for name in VMS}
    nowhere = 0
    for number, (mac, vlan) in enumerate(destinations * 30):
        one = frame(mac, HOST, 64 + number % 1400, number, vlan)
        frames.append(one)
        names = [OWNER[mac, vlan]] if (mac, vlan) in OWNER else []
        if mac == BROADCAST:
            names = [name for name in VMS if VLANS[name] == vlan]
        for name in names:
            wanted[name].append(untagged(one))
        nowhere += not names

    devices = []
    for index, (name, mac) in enumerate(VMS.items()):
        devices.append(virtio_user(index, tmp_path / f"{name}.sock", mac))
        devices.append(pcap(index, write=tmp_path / f"{name}.out"))
    with (
        wired(tmp_path, VMS, VLANS) as (engine, wire),
        Testpmd(tmp_path, devices, memory=512, buffers=65536, options=("--total-num-mbufs=65536",)) as pmd,
    ):
        for name in VMS:
            engine.wait_for(name, "running")
        pmd.say("start")
        wire.send(frames)
        for index, name in enumerate(VMS):
            pmd.wait_received(2 * index, len(wanted[name]))
        rows, uplink = engine.show("vms"), engine.show("uplinks")["lan"]
        pmd.quit()

    for name in VMS:
        assert not difference(read_capture(tmp_path / f"{name}.out"), wanted[name]), name
        assert (rows[name]["frames_to_guest"], rows[name]["drops"]) == (len(wanted[name]), {})
    assert uplink["frames_from_wire"] == len(frames)
    assert uplink["forwarded"] + sum(uplink["drops"].values()) == len(frames)
    assert uplink["drops"]["default_queue"] == nowhere


@pytest.mark.slow
def test_a_capture_at_full_speed_is_counted_exactly(tmp_path: Path) -> None:
    """64 million frames of a replayed capture, of which each VM owns an eighth of an eighth: no frame without a place.

    The size of a frame names its VM, so bytes tell whether one went astray.
    """
    rounds, offered = 1_000_000, 0
    macs = {f"g{number}": f"52:54:00:00:02:{number:02x}" for number in range(8)}
    sizes = {name: 64 + 8 * index for index, name in enumerate(macs)}
    frames = [
        frame(mac, HOST, 4 + sizes[name], 0, vlan) for vlan in VLANS.values() for name, mac in macs.items()
    ]
    write_capture(tmp_path / "in.pcap", frames)
    body = f'[uplink.lan]\nkind = "pcap"\nread = "{{folder}}/in.pcap"\nrepeat = {rounds}\n'
    body += ports(macs, uplink="lan", mode="connect", vlans=VLANS)

    devices = [
        virtio_user(index, tmp_path / f"{name}.sock", mac, server=True)
        for index, (name, mac) in enumerate(macs.items())
    ]
    pmd = Testpmd(
        tmp_path,
        devices,
        forward="rxonly",
        memory=512,
        buffers=65536,
        options=("--port-topology=loop", "--auto-start"),
    )
    pmd.launch()
    try:
        with EngineProcess(tmp_path, engine_text(body)) as engine:
            pmd.ready()
            until(
                lambda: engine.show("uplinks")["lan"]["frames_from_wire"] == rounds * len(frames),
                "the replay ends",
                120,
            )
            until(lambda: engine.show("uplinks")["lan"]["waiting"] == 0, "nothing waits")
            uplink, queues = engine.show("uplinks")["lan"], engine.show("queues")
            for index, name in enumerate(macs):
                row = queues[f"{name}/0"]
                pmd.wait_received(index, row["frames_to_guest"])
                taken = pmd.stats(index)
                assert 0 < row["frames_to_guest"] == taken["ipackets"]
                assert row["bytes_to_guest"] == taken["ibytes"] == taken["ipackets"] * sizes[name]
                missed = row["offered_to_guest"] - row["frames_to_guest"]  # before its driver was there
                assert row["drops"] == {"to_guest_not_running": missed}
                offered += row["offered_to_guest"]
    finally:
        pmd.__exit__()

    # The wire is there a moment before the last filter is: what came then is the host's.
    assert uplink["forwarded"] == offered
    assert uplink["drops"] == {"default_queue": rounds * len(frames) - offered}
    assert 0.9 * rounds * len(macs) < offered <= rounds * len(macs)
