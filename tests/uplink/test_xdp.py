# SPDX-License-Identifier: Apache-2.0
"""AF_XDP on real veth pairs in namespaces of the test's own: both ways byte for byte, and what is the host's stays the host's."""

from __future__ import annotations

import json
import os
import socket
import struct
from contextlib import closing

import pytest

from tests.dataplane.harness_wire import Round, plain
from tests.direct.harness_nic import Nic
from tests.uplink.harness_xdp import (
    BROADCAST,
    VM,
    on_egress,
    opened,
    program_on,
    raw,
    refusal,
    settings,
    tagged,
    until,
    wait_for,
    with_tag,
)
from tests.vm.lab.netns import Namespace
from vmq import ethtool
from vmq.abi import bpf
from vmq.abi.ethernet import mac_number
from vmq.bpf.assembler import R0, R1, R2, Code
from vmq.bpf.link import Link
from vmq.bpf.program import Program
from vmq.dataplane import state
from vmq.direct.memory import GuestMemory
from vmq.direct.nic_socket import BESIDE, SIZE, NicSocket
from vmq.uplink import link
from vmq.uplink.xdp_device import STRIPPING

pytestmark = pytest.mark.root


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_frames_cross_a_veth_both_ways_with_their_tags_in_order(
    wires: tuple[Namespace, Namespace], mode: str
) -> None:
    engine, peer = wires
    tags = ["", "81000007", "81006007", "81000000", "88a80005", "8100000081000006", "88a8000581000006"]
    frames = [tagged(plain(number, 60 + number), tag) for number, tag in enumerate(tags)]
    frames += [plain(number, 1514) for number in range(100, 400)]
    with closing(opened(engine, mode=mode)) as uplink, raw(peer, "peer0") as host:
        uplink.follow({(VM, 0), (VM, 7)})
        worker, lane = Round(), uplink.lanes[0]
        got = []
        for place in range(0, len(frames), 100):
            for frame in frames[place : place + 100]:
                host.send(frame)
            got += wait_for(worker, lane, len(frames[place : place + 100]))
        assert got == frames
        assert engine.call(uplink.status)["verdicts"] == {
            "steered": len(frames), "group": 0, "nobody": 0, "direct": 0, "no_socket": 0, "too_long": 0, "runt": 0,
                "own_queue": 0,
        }  # fmt: skip

        sent = [plain(number, 60 + number) for number in range(1, 300)]
        for first in range(0, len(sent), 100):
            worker.begin()
            for frame in sent[first : first + 100]:
                worker.put(frame)
            worker.transmit(lane)
            assert [host.recv(2000) for _ in sent[first : first + 100]] == sent[first : first + 100]
        worker.begin()
        worker.put(plain(2, 1514), tci=0x6007, cuts=(60, 700))
        worker.put(plain(3, 1515))
        worker.transmit(lane)
        assert with_tag(host) == tagged(plain(2, 1514), "81006007")
        assert worker.drops(lane) == {"to_wire_error": 1}  # longer than the device's MTU
        assert worker.drain(lane) == []  # what we sent ourselves does not come back
        assert worker.state_of(lane)["frames_to_wire"] == len(sent) + 1


def test_rings_go_round_and_nothing_is_lost_or_repeated(wires: tuple[Namespace, Namespace]) -> None:
    """More frames than there are chunks, both ways."""
    engine, peer = wires
    total = 5000
    with closing(opened(engine)) as uplink, raw(peer, "peer0") as host:
        uplink.follow({(VM, 0)})
        host.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
        worker, lane = Round(), uplink.lanes[0]
        for first in range(0, total, 100):
            burst = [plain(number, 80) for number in range(first, first + 100)]
            for frame in burst:
                host.send(frame)
            assert wait_for(worker, lane, 100) == burst
            worker.begin()
            for frame in burst:
                worker.put(frame)
            worker.transmit(lane)
            assert [host.recv(100) for _ in burst] == burst
        assert worker.drops(lane) == {}
        shown = uplink.sockets[0].row
        until(lambda: worker.receive(lane) == 0)
        assert shown["lent"] == 0
        assert engine.call(uplink.status)["lost"] == 0


def test_what_is_the_host_s_reaches_the_host_and_groups_reach_both(
    wires: tuple[Namespace, Namespace],
) -> None:
    engine, peer = wires
    own = bytes.fromhex(engine.mac("left0").replace(":", ""))
    to_host, to_nobody = own + plain(1)[6:], b"\x02\0\0\0\0\x77" + plain(2)[6:]
    groups = [BROADCAST + plain(3)[6:], b"\x33\x33\0\0\0\1" + tagged(plain(4), "81000009")[6:]]
    other_vlan = tagged(plain(5), "81000006")
    with closing(opened(engine)) as uplink, raw(peer, "peer0") as host, raw(engine, "left0") as stack:
        uplink.follow({(VM, 0)})
        worker, lane = Round(), uplink.lanes[0]
        for frame in (to_host, to_nobody, *groups, other_vlan, plain(6)):
            host.send(frame)
        got = wait_for(worker, lane, 4)
        assert got[0] == plain(6) or got[-1] == plain(6)  # another way: no order between a group and a VM
        assert [frame for frame in got if frame != plain(6)] == [*groups, other_vlan]
        assert stack.recv(200) == to_host
        assert stack.recv(200) == to_nobody
        uplink.follow({(VM, 0)}, everything=True)
        host.send(to_nobody)
        assert wait_for(worker, lane, 1) == [to_nobody]
        assert engine.call(uplink.status)["verdicts"]["nobody"] == 4
        assert settings(engine, uplink)["watched"][1] == "everything"


def test_the_host_answers_as_before(wires: tuple[Namespace, Namespace]) -> None:
    """ARP and ICMP of the host's own address pass the program."""
    engine, peer = wires
    engine.address("left0", "10.9.0.1/24")
    peer.address("peer0", "10.9.0.2/24")
    peer.run("ethtool", "-K", "peer0", "tx", "off", "txvlan", "off", check=False)
    with closing(opened(engine)) as uplink:
        uplink.follow({(VM, 0)})
        assert " 0% packet loss" in peer.run("ping", "-c", "3", "-i", "0.2", "-W", "5", "10.9.0.1")


def test_the_map_follows_the_receive_filters(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    with closing(opened(engine)) as uplink, raw(peer, "peer0") as host:
        worker, lane = Round(), uplink.lanes[0]
        assert uplink.steering is not None
        uplink.follow({(VM, 0)})
        for number, filters in enumerate([{(VM, 5)}, {(VM, 0), (VM, 5)}, set(), {(VM, 0)}]):
            uplink.follow(filters)
            keys = {int.from_bytes(key, "little") for key in list(uplink.steering.filters.keys())}
            assert keys == {mac | vid << state.VID_SHIFT for mac, vid in filters}
            before = uplink.steering.verdicts()["steered"]
            host.send(plain(number))
            host.send(BROADCAST + plain(number)[6:])  # the last of the two in any case
            wait_for(worker, lane, 1 + bool(filters))
            assert uplink.steering.verdicts()["steered"] - before == ((VM, 0) in filters)


def test_lanes_beyond_the_queues_of_the_nic_send_by_packet_sockets(
    wires: tuple[Namespace, Namespace],
) -> None:
    engine, peer = wires
    with closing(opened(engine, 3)) as uplink, raw(peer, "peer0") as host:
        uplink.follow({(VM, 0)})
        assert [int(row["kind"]) for row in uplink.lanes] == [
            state.LANE_XDP,
            state.LANE_PACKET,
            state.LANE_PACKET,
        ]
        assert len({*uplink.descriptors()}) == 3
        for number, lane in enumerate(uplink.lanes):
            worker = Round()
            worker.put(plain(number))
            worker.transmit(lane)
            assert host.recv(100) == plain(number)


def test_queues_beyond_the_workers_lead_through_the_kernel() -> None:
    """Frames on a NIC queue without a socket reach their VM by a packet socket."""
    with Namespace("engine") as engine, Namespace("peer") as peer:
        for host in (engine, peer):
            host.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        engine.run("ip", "link", "add", "left0", "numrxqueues", "2", "numtxqueues", "2", "type", "veth",
                   "peer", "name", "peer0", "numrxqueues", "2", "numtxqueues", "2", "netns", peer.name)  # fmt: skip
        engine.up("left0")
        peer.up("peer0")
        with closing(opened(engine)) as uplink, raw(peer, "peer0") as host_end, chosen_queue(peer, 1):
            uplink.follow({(VM, 0)})
            asked, used, why = settings(engine, uplink)["nic_queues"]
            assert (asked, used) == (2, 1)
            assert "ethtool -L left0" in why
            host_end.send(plain(1))
            assert wait_for(Round(), uplink.lanes[0], 1) == [plain(1)]
            assert engine.call(uplink.status)["verdicts"]["no_socket"] == 1


def chosen_queue(host: Namespace, queue: int) -> closing[Link]:
    """Have frames that leave by peer0 arrive on one queue of the other end."""
    code = Code()
    code.let(R2, "=", queue + 1)
    code.store(R1, 12, R2, 4)  # __sk_buff.queue_mapping
    code.let(R0, "=", bpf.TCX_NEXT)
    code.exit()
    return on_egress(host, code)


def test_closing_takes_the_program_off_and_leaves_nothing(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    before = os.listdir("/proc/self/fd")

    def tags() -> list[bool]:
        said = engine.call(lambda: ethtool.describe("left0"))
        assert said is not None
        return [said.features[name] for name in STRIPPING]

    assert tags() == [True, True]
    for _ in range(2):  # the queue is free again, if not at once
        uplink = opened(engine)
        assert program_on(engine) is not None
        assert tags() == [False, False]
        uplink.close()
        uplink.close()
        assert program_on(engine) is None
    assert tags() == [True, True]
    assert os.listdir("/proc/self/fd") == before
    with closing(opened(engine, 2)) as again, raw(peer, "peer0") as host:
        again.follow({(VM, 0)})
        host.send(plain(1))
        assert wait_for(Round(), again.lanes[0], 1) == [plain(1)]


def test_what_was_asked_for_by_name_and_cannot_be_had_is_refused(wires: tuple[Namespace, Namespace]) -> None:
    engine, _ = wires
    assert "is a veth" in refusal(engine, mode="native", prepared=False)
    assert "takes no AF_XDP: Operation not supported" in refusal(engine, mode="native", zero_copy="on")
    assert "no zero-copy in generic mode" in refusal(engine, mode="generic", zero_copy="on")
    assert "no buffer takes frames of 9018 bytes" in refusal(engine, mode="generic", mtu=9000)
    assert program_on(engine) is None


def test_a_program_of_somebody_else_is_left_alone(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    code = Code()
    code.let(R0, "=", bpf.XDP_PASS)
    code.exit()
    with Program(bpf.BPF_PROG_TYPE_XDP, "other", code) as program:
        held = engine.call(lambda: Link(program, link.index_of("left0"), flags=bpf.XDP_FLAGS_SKB_MODE))
        with held, closing(opened(engine)) as uplink, raw(peer, "peer0") as host:
            assert settings(engine, uplink)["mode"][1] == "packet sockets"
            assert "takes no AF_XDP" in settings(engine, uplink)["mode"][2]
            host.send(plain(1))
            assert wait_for(Round(), uplink.lanes[0], 1) == [plain(1)]


def test_a_device_that_is_down_is_a_named_drop_and_comes_back(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    with closing(opened(engine)) as uplink, raw(peer, "peer0") as host:
        uplink.follow({(VM, 0)})
        worker, lane = Round(), uplink.lanes[0]
        engine.run("ip", "link", "set", "left0", "down")
        for _ in range(3):
            worker.begin()
            worker.put(plain(1))
            worker.transmit(lane)
        shown = worker.state_of(lane)
        assert worker.drops(lane)["to_wire_error"] == 2  # the first was on its way when that was found out
        assert (shown["pending"], shown["frames_to_wire"], shown["bytes_to_wire"]) == (1, 0, 0)
        assert shown["refused"] < 0  # so nobody is woken for it
        engine.run("ip", "link", "set", "left0", "up")
        got: list[bytes] = []

        def arrived() -> bool:
            host.send(plain(2))
            got.extend(worker.drain(lane))
            return bool(got)

        until(arrived)
        assert set(got) == {plain(2)}
        worker.begin()
        worker.put(plain(3))
        worker.transmit(lane)
        assert [host.recv(100) for _ in range(2)] == [plain(1), plain(3)]
        assert (shown["pending"], shown["frames_to_wire"]) == (0, 2)


def test_frames_that_a_device_without_carrier_takes_and_loses_are_named(
    wires: tuple[Namespace, Namespace],
) -> None:
    engine, peer = wires
    with closing(opened(engine)) as uplink:
        worker, lane = Round(), uplink.lanes[0]
        peer.run("ip", "link", "set", "peer0", "down")
        for _ in range(3):
            worker.begin()
            for number in range(100):
                worker.put(plain(number))
            worker.transmit(lane)
        shown = worker.state_of(lane)
        until(lambda: worker.receive(lane) == 0 and shown["pending"] == 0)
        assert (shown["frames_to_wire"], shown["bytes_to_wire"]) == (0, 0)
        assert worker.drops(lane) == {"to_wire_full": 300}


def test_frames_to_a_vm_do_not_keep_a_broadcast_waiting_however_few_a_round_takes(
    wires: tuple[Namespace, Namespace],
) -> None:
    """In a segment with many VMs a round takes few frames, for each may go to all."""
    engine, peer = wires
    group = BROADCAST + plain(3)[6:]
    with closing(opened(engine)) as uplink, raw(peer, "peer0") as host:
        uplink.follow({(VM, 0)})
        worker, lane = Round(frame_limit=16), uplink.lanes[0]
        host.send(group)
        got: list[bytes] = []
        for _ in range(100):
            for number in range(16):
                host.send(plain(number))
            worker.receive(lane)
            got += worker.received()
            if group in got:
                break
        assert group in got
        assert len(got) > 1


def test_the_own_address_of_the_device_stays_the_host_s(wires: tuple[Namespace, Namespace]) -> None:
    """Also for whom a receive filter names it: it gets a copy, as on a packet uplink; and when the device gets another."""
    engine, peer = wires
    own, other = engine.mac("left0"), "02:00:00:00:00:aa"
    with closing(opened(engine)) as uplink, raw(peer, "peer0") as host, raw(engine, "left0") as stack:
        worker, lane = Round(), uplink.lanes[0]
        uplink.follow({(VM, 0), (mac_number(own), 0), (mac_number(other), 0)})

        def reaches_both(address: str) -> bool:
            frame = bytes.fromhex(address.replace(":", "")) + plain(1)[6:]
            host.send(frame)
            assert wait_for(worker, lane, 1) == [frame]
            stack.settimeout(0.2)
            try:
                return stack.recv(200) == frame
            except TimeoutError:
                return False

        assert reaches_both(own)
        assert not reaches_both(other)
        engine.run("ip", "link", "set", "left0", "address", other)
        uplink._look = 0.0
        engine.call(uplink.tick)
        assert reaches_both(other)
        assert not reaches_both(own)


def test_a_device_that_moves_away_is_let_go(wires: tuple[Namespace, Namespace]) -> None:
    engine, _ = wires
    with Namespace("third") as third, closing(opened(engine)) as uplink:
        uplink.follow({(VM, 0)})
        engine.run("ip", "link", "set", "left0", "netns", third.name)
        assert "xdp" in json.loads(third.run("ip", "-json", "link", "show", "left0"))[0]
        engine.call(uplink.tick)
        assert "xdp" not in json.loads(third.run("ip", "-json", "link", "show", "left0"))[0]


def test_a_device_that_goes_away_is_named(wires: tuple[Namespace, Namespace]) -> None:
    engine, _ = wires
    with closing(opened(engine)) as uplink:
        uplink.follow({(VM, 0)})
        worker, lane = Round(), uplink.lanes[0]
        engine.run("ip", "link", "delete", "left0")
        assert engine.call(uplink.status)["state"] == "gone"
        for _ in range(3):
            worker.begin()
            worker.put(plain(1))
            worker.transmit(lane)
            assert worker.receive(lane) == 0
        assert worker.drops(lane)["to_wire_error"] >= 2
        uplink.follow({(VM, 0), (VM + 4, 0)})


def test_status_tells_what_is(wires: tuple[Namespace, Namespace]) -> None:
    engine, _ = wires
    with closing(opened(engine, 2)) as uplink:
        uplink.follow({(VM, 0)})
        told = engine.call(uplink.status)
        assert (told["kind"], told["device"], told["mtu"], told["state"], told["queues"]) == (
            "xdp",
            "left0",
            1500,
            "up",
            1,
        )
        assert set(told["statistics"]) > {"rx_dropped", "rx_ring_full"}
        shown = settings(engine, uplink)
        assert shown["mode"] == (None, "native", "the driver runs the program")
        assert shown["zero_copy"][:2] == (None, "off")
        assert shown["watched"][:2] == (None, "groups")


def test_an_announcement_leaves(wires: tuple[Namespace, Namespace]) -> None:
    engine, peer = wires
    with closing(opened(engine)) as uplink, raw(peer, "peer0") as host:
        uplink.send(plain(9))
        assert host.recv(100) == plain(9)
        assert struct.unpack(">H", plain(9)[14:16]) == (9,)


def test_a_vms_own_socket_gets_its_frames_and_what_it_lost_stays_counted() -> None:
    with Namespace("engine") as engine, Namespace("peer") as peer:
        for host in (engine, peer):
            host.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        with Nic(engine, peer, device="left0") as nic, closing(opened(engine)) as uplink:
            memory = GuestMemory([], BESIDE)
            own = engine.call(lambda: NicSocket(nic.index, 2, memory, 1514))
            nic.rule(VM, 2)
            uplink.follow({(VM, 0)})
            engine.call(lambda: uplink.join(own))
            engine.call(lambda: uplink.lead_own(3, {(VM, 0)}, 2, 1514))
            for first in range(0, SIZE, 128):
                nic.send(*(plain(first + number) for number in range(128)))
                until(lambda first=first: own.received() == first + 128)  # type: ignore[misc]
            nic.send(plain(1), plain(2))
            until(lambda: engine.call(uplink.status)["statistics"]["rx_dropped"] == 2)
            assert engine.call(uplink.status)["verdicts"]["own_queue"] == SIZE + 2
            engine.call(lambda: uplink.unlead(3))
            engine.call(lambda: uplink.part(own))
            own.close()
            memory.close()
            assert engine.call(uplink.status)["statistics"]["rx_dropped"] == 2
            nic.send(plain(3))  # by packet sockets: nobody of ours is on that queue
            assert wait_for(Round(), uplink.lanes[0], 1) == [plain(3)]
            uplink.part(own)  # it was told before
