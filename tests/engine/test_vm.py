# SPDX-License-Identifier: Apache-2.0
"""A VM port: its filters, what it learns, what it says, its faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.running import MACS, NO_FRAMES, PATIENCE, Running, frame, until
from vmq.abi.ethernet import mac_number, mac_text
from vmq.dataplane import reasons
from vmq.engine import vm as module
from vmq.engine.queues import address_filter
from vmq.engine.said import LINES_MAX
from vmq.engine.vm import prefix_of
from vmq.errors import ProtocolError
from vmq.qmp import RxFilter

FCOE = "0e:fc:00:00:00:00/24"


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (FCOE, "0e:fc:00:12:34:56", "0e:fd:00:12:34:56"),
        ("02:00:00:00:00:00/7", "03:ff:00:00:00:00", "04:00:00:00:00:00"),
        ("52:54:00:00:00:01/48", "52:54:00:00:00:01", "52:54:00:00:00:02"),
        ("52:54:00:80:00:00/25", "52:54:00:ff:00:01", "52:54:00:7f:00:01"),
    ],
)
def test_a_prefix_is_a_mask_in_the_order_of_the_wire(text: str, inside: str, outside: str):
    """The first bits on the wire are the lowest of the number's bytes."""
    mask, value = prefix_of(text)
    assert mac_number(inside) & mask == value
    assert mac_number(outside) & mask != value


def test_it_learns_what_its_prefixes_allow_up_to_its_limit(running: Running):
    running.configure(a=running.vm("a", learn=(FCOE,), learn_max=2))
    vm = running.engine.vms["a"]
    one, two, three = (mac_number(f"0e:fc:00:00:00:0{digit}") for digit in "123")
    assert running.do(vm.learn, one)
    assert not running.do(vm.learn, one)
    assert not running.do(vm.learn, mac_number("52:54:00:99:99:99")), "no prefix of its"
    assert running.do(vm.learn, two)
    assert not running.do(vm.learn, three)
    assert vm.macs == (mac_number(MACS[0]), one, two)
    assert running.do(vm.entry).learn_left == 0
    assert running.show("vms", "a")["learned"] == ["0e:fc:00:00:00:01", "0e:fc:00:00:00:02"]


def test_an_address_has_one_owner_in_a_segment(running: Running):
    """A second VM that claims it is told whose it is; another VLAN is another segment."""
    keys = {"learn": (FCOE,)}
    running.configure(
        a=running.vm("a", 1, **keys), b=running.vm("b", 2, **keys), c=running.vm("c", 3, vlan=5, **keys)
    )
    vms, mac = running.engine.vms, mac_number("0e:fc:00:00:00:01")
    assert running.do(vms["a"].learn, mac)
    assert not running.do(vms["b"].learn, mac)
    assert running.do(vms["c"].learn, mac)
    assert running.show("vms", "b")["last_error"]["what"] == "0e:fc:00:00:00:01 is a's"


def test_the_smallest_mtu_counts(running: Running):
    """Of configuration, uplink and guest."""
    running.configure(
        {"lan": NO_FRAMES}, a=running.vm("a", uplink="lan", mtu=1400), b=running.vm("b", 2, uplink="lan")
    )
    assert running.show("vms", "a")["mtu"] == 1400
    assert running.show("vms", "b")["mtu"] == 1500
    with running.guest("b", mtu=1300):
        assert running.show("vms", "b")["mtu"] == 1300
        assert running.do(running.engine.vms["b"].entry).frame_max == 1314
    until(lambda: running.show("vms", "b")["mtu"] == 1500)


def test_a_guest_that_was_told_a_larger_mtu_is_an_error_with_a_remedy(running: Running):
    """Its longer frames are dropped; what is smaller has its way."""
    running.configure(a=running.vm("a", mtu=1400))
    with running.guest("a", mtu=1400):
        assert running.show("vms", "a")["last_error"] is None
    with running.guest("a", mtu=9000):
        told = running.show("vms", "a")["last_error"]
    assert "9000" in told["what"]
    assert "host_mtu=1400" in told["remedy"]


def test_frames_that_wait_while_guest_memory_stays_empty_tell_that_it_is_not_shared(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """The file came, but what the guest writes does not. A guest that is only slow is no such case."""
    running.pair()
    with running.guest("a", post=0) as slow, running.guest("b") as sender:
        slow.memory.write(64, b"a vector")
        monkeypatch.setattr(module, "is_empty", lambda _region: True)
        assert running.show("vms", "a")["last_error"] is None, "nothing has waited yet"
        sender.send([frame(MACS[0], MACS[1])])
        until(lambda: running.show("vms", "a")["drops"])
        told = running.show("vms", "a")["last_error"]
        assert "not shared" in told["what"]
        assert "share=on" in told["remedy"]
        monkeypatch.undo()
        assert running.show("vms", "a")["last_error"] is None, "its memory is not empty"


def test_every_error_is_shown_and_few_are_logged(running: Running):
    """The last one is what `vmq show` has."""
    running.configure(a=running.vm("a"))
    vm = running.engine.vms["a"]
    for number in range(100):
        running.do(vm.refused, ProtocolError("vhost-user", f"wrong {number % 50}", "say it right"))
    assert running.show("vms", "a")["last_error"] == {
        "what": "vhost-user: wrong 49",
        "remedy": "say it right",
    }
    assert len(running.log.lines) == LINES_MAX
    assert running.log.lines[0] == "vm a: vhost-user: wrong 0. Remedy: say it right"


def test_obstacles_are_said_as_the_start_goes_on(running: Running):
    """What is missing next, before any ring runs."""
    running.configure(a=running.vm("a"))
    vm = running.engine.vms["a"]
    assert vm.obstacle == "no front-end is connected"
    guest = running.guest("a")
    guest.frontend.connect()
    guest.frontend.handshake(guest.features)
    until(lambda: running.show("vms", "a")["state"] == "connected")
    assert "the driver has not started it" in running.show("vms", "a")["last_error"]["what"]
    guest.frontend.set_features()
    guest.frontend.set_memory(guest.memory)
    one = guest.virtqueue(0, to_guest=True)
    guest.frontend.start_ring(one.place(), 0)
    assert running.show("vms", "a")["last_error"]["what"] == "the driver has not enabled the queue"
    assert running.show("vms", "a")["features"]
    guest.frontend.enable(0)
    assert running.show("vms", "a")["state"] == "running"
    assert running.show("vms", "a")["last_error"] is None
    guest.close()


def fault_of(running: Running) -> int:
    return int(running.engine.segment.rows["port_state"][running.engine.vms["a"].number]["fault"])


def test_a_fault_is_left_by_the_driver_or_the_front_end(running: Running):
    """State, reason and remedy while it lasts; nothing of it afterwards."""
    running.configure(a=running.vm("a"))
    rows = running.engine.segment.rows["port_state"]
    with running.guest("a") as guest:
        for again in ("driver", "front-end"):
            rows[0]["fault"] = reasons.CHAIN_LOOP
            running.do(running.engine.vms["a"].judge)
            row = running.show("vms", "a")
            assert row["state"] == "faulted"
            assert "loops" in row["last_error"]["what"]
            if again == "driver":
                guest.stop()
                guest.reset()
                guest.start()
            else:
                guest.reconnect()
            assert running.show("vms", "a")["state"] == "running"
            assert running.show("vms", "a")["last_error"] is None


def test_memory_that_is_gone_is_not_cured_by_starting_the_rings_again(running: Running):
    """What is mapped are zeros; new memory, or a new connection, brings the port back."""
    running.configure(a=running.vm("a"))
    rows = running.engine.segment.rows["port_state"]
    with running.guest("a", add_regions=False) as guest:
        rows[0]["fault"] = reasons.MEMORY_GONE
        running.do(running.engine.vms["a"].judge)
        guest.stop()
        guest.reset()
        guest.start()
        assert fault_of(running) == reasons.MEMORY_GONE
        guest.stop()
        guest.reset()
        guest.frontend._sent_regions = ()
        guest.start()
        assert fault_of(running) == reasons.NO_FAULT

        rows[0]["fault"] = reasons.MEMORY_GONE
        running.do(running.engine.vms["a"].judge)
        guest.reconnect()
        assert fault_of(running) == reasons.NO_FAULT


def test_a_spoofed_address_is_shown_until_it_is_allowed(running: Running):
    """With the remedy; and no longer once that was taken."""
    running.configure(a=running.vm("a"))
    running.engine.segment.rows["port_state"][0]["spoofed"] = mac_number("52:54:00:99:99:99")
    row = running.show("vms", "a")
    assert row["spoofed_mac"] == "52:54:00:99:99:99"
    assert 'add "52:54:00:99:99:99" to mac' in row["last_error"]["remedy"]
    running.configure(a=running.vm("a", mac=(MACS[0], "52:54:00:99:99:99")))
    assert running.show("vms", "a")["spoofed_mac"] is None
    running.configure(a=running.vm("a", spoof_check=False))
    assert running.show("vms", "a")["spoofed_mac"] is None


@pytest.mark.parametrize("base", [77, 0])
def test_rings_begin_where_front_end_and_guest_memory_say(running: Running, base: int):
    """The used index is read from guest memory: a driver counts on, even if its front-end says 0 after we were away."""
    running.configure(a=running.vm("a"))
    guest = running.guest("a")
    for one in guest.virtqueues:
        one.used["idx"] = 77
        one.row["next_used"] = 77
        one.base = base
    guest.virtqueues[0].avail["idx"] = guest.virtqueues[1].avail["idx"] = 77
    guest.virtqueues[0].row["next_avail"] = guest.virtqueues[1].row["next_avail"] = 77
    guest.start()
    rows = running.engine.segment.rows["ring_state"][:2]
    assert list(rows["next_used"]) == list(rows["shown"]) == [77, 77]
    assert np.all(rows["first"] <= 1)
    guest.stop()
    assert [one.base for one in guest.virtqueues] == [77, 77]
    guest.close()


def test_addresses_are_numbers_in_the_order_of_the_wire(running: Running):
    running.configure(a=running.vm("a", mac=(MACS[0], MACS[4])))
    assert [mac_text(mac) for mac in running.engine.vms["a"].macs] == [MACS[0], MACS[4]]


def test_what_is_followed_is_a_filter_and_goes_with_the_front_end(running: Running, tmp_path: Path):
    """A receive filter and a lawful source while the guest's device has it; learned and followed share a quota."""
    running.configure(a=running.vm("a", qmp=str(tmp_path / "qmp"), learn_max=1), b=running.vm("b", 2))
    vm, mac = running.engine.vms["a"], "0e:fc:00:00:00:07"
    own = mac_number(MACS[0])
    with running.guest("a") as a, running.guest("b") as b:
        running.do(vm.following._answered, (RxFilter("net0", own, (mac_number(mac),)),))
        a.send([frame(b.mac, mac)])
        assert b.receive(1, PATIENCE) == [frame(b.mac, mac)]
        b.send([frame(mac, b.mac)])
        assert a.receive(1, PATIENCE) == [frame(mac, b.mac)]
        assert [(row["mac"], row["source"]) for row in running.show("filters") if row["vm"] == "a"] == [
            (MACS[0], "config"),
            (mac, "followed"),
        ]
        assert running.do(vm.entry).learn_left == 0
    until(lambda: vm.macs == (own,))
    assert len(vm.filters) == 1


def test_a_configured_address_is_followed_no_more_by_a_neighbour(running: Running, tmp_path: Path):
    """The configuration goes before every guest's list, also while it is brought about."""
    running.configure(a=running.vm("a", qmp=str(tmp_path / "qmp")))
    vm = running.engine.vms["a"]
    with running.guest("a"):
        running.do(vm.following._answered, (RxFilter("net0", mac_number(MACS[0]), (mac_number(MACS[1]),)),))
        assert running.show("vms", "a")["following"]["followed"] == [MACS[1]]
        running.configure(a=vm.config, b=running.vm("b", 2))
        assert vm.macs == (mac_number(MACS[0]),)
        assert running.show("vms", "a")["following"]["refused"] == [{"mac": MACS[1], "why": "it is b's"}]


def test_a_followed_address_that_quarrels_with_a_filter_of_the_api_is_refused(
    running: Running, tmp_path: Path
):
    """Nothing of the attempt is left, and the other addresses of the list are followed."""
    running.configure(a=running.vm("a", qmp=str(tmp_path / "qmp")))
    vm, free, taken = running.engine.vms["a"], *map(mac_number, MACS[7:9])
    contract, own = vm.home.contract, mac_number(MACS[0])
    theirs = running.do(contract.allocate, "tool", {"name": "t", "vm": "a"})
    theirs_filter = running.do(contract.set_filter, "tool", theirs, address_filter(taken, None))
    with running.guest("a"):
        before = len(running.do(contract.enum_filters, None, vm.queue_id))
        running.do(vm.following._answered, (RxFilter("net0", own, (free,)),))
        running.do(vm.following._answered, (RxFilter("net0", own, (free, taken)),))
        assert running.show("vms", "a")["following"]["followed"] == [MACS[7]]
        assert [one["mac"] for one in running.show("vms", "a")["following"]["refused"]] == [MACS[8]]
        assert len(running.do(contract.enum_filters, None, vm.queue_id)) == before + 1 == len(vm.filters)

        running.do(contract.clear_filter, "tool", theirs_filter)
        running.do(vm.following._answered, (RxFilter("net0", own, (free, taken)),))
        assert running.show("vms", "a")["following"]["followed"] == MACS[7:9]
