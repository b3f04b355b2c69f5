# SPDX-License-Identifier: Apache-2.0
"""Receive queues of a running engine: the configuration's, those of API owners, filters that move, and guests that see it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engine.running import (
    MACS,
    NO_FRAMES,
    PATIENCE,
    TWO_CPUS,
    Running,
    exchange,
    frame,
    two_processors,
    until,
)
from vmq.abi.ethernet import mac_number
from vmq.contract import CONFIG, DEFAULT_QUEUE, DROP_QUEUE, Contract
from vmq.engine import mover
from vmq.engine.queues import address_filter
from vmq.errors import ApiError, ConfigError
from vmq.filters import Field, FieldTest, Filter, Kind

TEST_TYPE = 0x88B5  # EtherType of `frame`
LOCAL = Filter(
    (
        FieldTest(Field.ETHERTYPE, Kind.EQUAL, TEST_TYPE),
        FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MACS[50])),
    )
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        yield one


def contract(running: Running, uplink: str = "") -> Contract:
    return running.engine.contracts[uplink]


def rows(running: Running, uplink: str = "") -> dict[str, dict[str, Any]]:
    """Receive queues by name."""
    return {row["name"]: row for row in running.do(contract(running, uplink).enum_queues, None)}


def shared(running: Running, name: str) -> bool:
    return running.engine.vms[name].queues[0].shared


def events(running: Running, kind: str) -> list[dict[str, Any]]:
    return [record for record in running.do(running.engine.journal.since, 0) if record["event"] == kind]


# --- what the configuration asks for ----------------------------------------------------------------------------


def test_every_vm_port_has_a_receive_queue_of_its_own_with_a_filter_for_each_address(running: Running):
    running.configure(a=running.vm("a", mac=(MACS[0], MACS[1])), b=running.vm("b", 3))
    found = rows(running)
    assert [found[name]["state"] for name in ("default", "a", "b")] == ["Running"] * 3
    assert [found[name]["owner"] for name in "ab"] == [CONFIG] * 2
    assert [found[name]["filters"] for name in "ab"] == [2, 1]
    assert not shared(running, "a")
    running.configure(a=running.vm("a", mac=(MACS[1], MACS[3])))
    found = rows(running)
    assert set(found) == {"default", "a"}
    texts = [row["text"] for row in running.do(contract(running).enum_filters, None, found["a"]["queue"])]
    assert sorted(texts) == [
        f"mac_destination == {mac} and vlan_untagged_or_zero" for mac in (MACS[1], MACS[3])
    ]


@pytest.mark.parametrize("own", [0, 1, 2])
def test_where_receive_queues_are_scarce_weight_decides_and_the_others_are_served_by_the_default_queue(
    running: Running, own: int
):
    """Frames arrive either way; who has none is told why, and gets one when there is one."""
    lan = {"lan": type(NO_FRAMES)(count=0, queues=own)}
    vms = {
        "a": running.vm("a", 1, uplink="lan", weight=10),
        "b": running.vm("b", 2, uplink="lan", weight=20),
        "c": running.vm("c", 3, uplink="lan", weight=0),
    }
    running.configure(lan, **vms)
    assert [shared(running, name) for name in "abc"] == [own < 2, own < 1, True]
    found = rows(running, "lan")
    if own < 2:
        assert found["a"]["why"] == f"all {own} receive queues are taken"
    assert found["c"]["why"] == "weight 0 asks for no receive queue of its own"
    with running.guest("a") as a, running.guest("b") as b, running.guest("c") as c:
        exchange(a, b)
        exchange(b, c)
        running.configure({"lan": NO_FRAMES}, **vms)
        assert [shared(running, name) for name in "abc"] == [False, False, True]
        exchange(a, b)
        exchange(a, c)
    assert running.show("vms", "a")["connects"] == 1


def test_a_filter_of_somebody_else_is_not_taken_over_by_the_configuration(running: Running):
    """The refusal names it, and nothing has changed."""
    running.configure(a=running.vm("a", queue_pairs=2))
    one = contract(running)
    mine = running.do(one.allocate, "x", {"vm": "a"})
    running.do(one.set_filter, "x", mine, address_filter(mac_number(MACS[4]), None))
    running.do(one.allocation_complete, "x", [mine])
    before = rows(running)
    with pytest.raises(ConfigError, match="a frame could pass this filter and filter"):
        running.configure(a=running.vm("a", queue_pairs=2), b=running.vm("b", 5))
    assert rows(running) == before
    assert list(running.engine.vms) == ["a"]


def test_learned_addresses_are_filters_too(running: Running):
    running.configure(
        a=running.vm("a", learn=("0e:fc:00:00:00:00/24",)),
        b=running.vm("b", 2),
    )
    with running.guest("a") as a, running.guest("b") as b:
        a.send([frame(b.mac, "0e:fc:00:00:00:07")])
        b.receive(1, PATIENCE)
        learned = frame("0e:fc:00:00:00:07", b.mac, 1)
        until(lambda: running.show("vms", "a")["learned"])
        b.send([learned])
        assert a.receive(1, PATIENCE) == [learned]
        assert rows(running)["a"]["filters"] == 2
    until(lambda: rows(running)["a"]["filters"] == 1)


# --- owners of the API --------------------------------------------------------------------------------------------


def second(running: Running, vm: str, owner: str = "x") -> int:
    """A complete second receive queue of a VM."""
    name = running.do(contract(running).allocate, owner, {"vm": vm, "name": f"{owner}-{vm}"})
    (done,) = running.do(contract(running).allocation_complete, owner, [name])
    assert done.status == "SUCCESS", done.why
    return name


def test_a_second_receive_queue_takes_what_its_filters_name(running: Running):
    """Frames that pass lie in the second ring of the guest, all others where they were."""
    running.configure(a=running.vm("a", queue_pairs=2), b=running.vm("b", 2))
    mine = second(running, "a")
    with running.guest("a", queues=2) as a, running.guest("b") as b:
        to_first, to_second = frame(a.mac, b.mac), frame(MACS[50], b.mac, 1)
        assert running.do(contract(running).set_filter, "x", mine, LOCAL) > 0
        b.send([to_first, to_second])
        got = a.receive_packets(2, PATIENCE)
        assert {(packet.queue, packet.frame) for packet in got} == {(0, to_first), (1, to_second)}
        assert rows(running)["x-a"]["state"] == "Running"


def test_a_receive_queue_needs_a_vm_and_a_queue_pair_that_is_free(running: Running):
    running.configure(a=running.vm("a", queue_pairs=2))
    one = contract(running)
    second(running, "a")
    for vm, why in (("nobody", "no VM 'nobody' on this uplink"), ("a", "all 2 queue pairs of a are taken")):
        name = running.do(one.allocate, "x", {"vm": vm})
        (done,) = running.do(one.allocation_complete, "x", [name])
        assert (done.status, why in done.why) == ("RESOURCES", True)


def test_a_filter_moves_between_vms_and_each_frame_reaches_one_of_them(running: Running):
    running.configure(
        a=running.vm("a", queue_pairs=2), b=running.vm("b", 2, queue_pairs=2), c=running.vm("c", 3)
    )
    queues = [second(running, "a"), second(running, "b")]
    moved = running.do(contract(running).set_filter, "x", queues[0], LOCAL)
    with (
        running.guest("a", queues=2, size=256) as a,
        running.guest("b", queues=2, size=256) as b,
        running.guest("c") as c,
    ):
        sent, got = 0, list[int]()
        for turn in range(40):
            burst = [frame(MACS[50], c.mac, sent + number) for number in range(8)]
            sent += len(burst)
            c.send(burst)
            running.do(contract(running).move_filter, "x", moved, queues[(turn + 1) % 2])
            assert c.sent(PATIENCE)
            for guest in (a, b):
                got += [int.from_bytes(data[14:18], "big") for data in guest.receive(64, 0.01)]
        assert sorted(got) == list(range(sent))


def test_the_drop_queue_takes_frames_from_everybody_under_a_name(running: Running):
    running.pair()
    one = Filter(
        (*LOCAL.tests[:1], FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MACS[0]))), priority=5
    )
    number = running.do(contract(running).set_filter, "x", DROP_QUEUE, one)
    with running.guest("a") as a, running.guest("b") as b:
        b.send([frame(a.mac, b.mac)])
        assert b.sent(PATIENCE)
        assert running.show("vms", "b")["drops"] == {"drop_queue": 1}
        running.do(contract(running).clear_filter, "x", number)
        exchange(a, b)


def test_when_a_vm_goes_all_its_receive_queues_go(running: Running):
    running.configure(a=running.vm("a", queue_pairs=3), b=running.vm("b", 2))
    mine = second(running, "a")
    running.do(contract(running).set_filter, "x", mine, LOCAL)
    running.configure(b=running.vm("b", 2))
    assert set(rows(running)) == {"default", "b"}
    with pytest.raises(ApiError):
        running.do(contract(running).queue_parameters, "x", mine)
    assert [record["queue"] for record in events(running, "dma_stopped")].count(mine) == 1


def test_when_an_uplink_goes_filters_of_everybody_go(running: Running):
    running.configure({"lan": NO_FRAMES}, a=running.vm("a", uplink="lan"))
    running.do(contract(running, "lan").set_filter, "x", DROP_QUEUE, LOCAL)
    running.do(contract(running, "lan").set_filter, "x", DEFAULT_QUEUE, address_filter(5 << 8, None))
    running.configure()
    assert list(running.engine.contracts) == [""]
    running.configure({"lan": NO_FRAMES}, a=running.vm("a", uplink="lan"))
    assert running.do(contract(running, "lan").enum_filters, None, DROP_QUEUE) == ()


# --- counters and resets ------------------------------------------------------------------------------------------


def test_statistics_begin_anew_without_disturbing_anybody(running: Running):
    running.pair()
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b, 5)
        name = rows(running)["a"]["queue"]
        running.do(contract(running).reset_statistics, None, name)
        assert running.show("queues", "a")["frames_to_guest"] == 0
        assert running.show("queues", "b")["frames_to_guest"] == 5
        exchange(a, b, 2)
        assert running.show("queues", "a")["frames_to_guest"] == 2
        running.do(contract(running).reset)
        assert running.show("queues", "b")["frames_to_guest"] == 0
        exchange(a, b)
        assert len(events(running, "reset")) == 1


@pytest.mark.parametrize("operation", ["reset", "fewer receive queues"])
@pytest.mark.parametrize("cpus", [TWO_CPUS[:1], pytest.param(TWO_CPUS, marks=two_processors)], ids=len)
def test_a_reset_of_many_takes_as_many_versions_of_the_tables_as_one_of_few(
    tmp_path: Path, cpus: list[int], operation: str, monkeypatch: pytest.MonkeyPatch
):
    """Control would be held for seconds otherwise: a version has all VM ports, and guests that run have a way to go."""
    monkeypatch.setattr(mover, "PATIENCE_SECONDS", PATIENCE)  # who is slow has a version of his own
    versions: list[int] = []
    with Running(tmp_path, tuple(cpus)) as running, ExitStack() as guests:
        for count in (2, 6):
            names = [f"v{n}" for n in range(1, count + 1)]
            vms = {name: running.vm(name, n, uplink="lan") for n, name in enumerate(names, 1)}
            running.configure({"lan": NO_FRAMES}, **vms)
            for name in names[len(versions) * 2 :]:
                guests.enter_context(running.guest(name))
            until(lambda: all(running.engine.vms[name].running for name in names))  # noqa: B023 - not kept
            until(lambda: not running.engine.mover._under_way)
            before = running.engine.publisher.epoch
            queues = running.engine.queues["lan"]
            if operation == "reset":
                running.do(queues.contract.reset)
            else:
                running.do(queues.limit, 1000 - count)
            until(lambda: not running.engine.mover._under_way)
            versions.append(running.engine.publisher.epoch - before)
            assert not any(shared(running, name) for name in names)
        assert {vm.worker for vm in running.engine.vms.values()} == set(range(len(cpus)))
    assert versions[0] == versions[1]


def test_the_default_queue_has_the_counters_of_whom_it_serves_and_of_its_uplink(running: Running):
    """Frames of a VM without a receive queue of its own come over it; what nobody's filter names leaves by the uplink."""
    running.configure(
        {"lan": NO_FRAMES, "wan": NO_FRAMES},
        a=running.vm("a", 1, uplink="lan", weight=0, queue_pairs=2),
        b=running.vm("b", 2, uplink="lan"),
    )
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b, 5)
        a.send([frame(MACS[60], a.mac)])
        until(lambda: running.show("uplinks", "lan")["frames_to_wire"] == 1)
        running.do(contract(running, "wan").reset_statistics, None, DEFAULT_QUEUE)
        assert running.show("uplinks", "lan")["frames_to_wire"] == 1

        running.do(contract(running, "lan").reset_statistics, None, DEFAULT_QUEUE)
        assert running.show("uplinks", "lan")["frames_to_wire"] == 0
        assert running.show("queues", "a")["frames_to_guest"] == 0
        assert running.show("vms", "a")["frames_from_guest"] == 0
        assert running.show("queues", "b")["frames_to_guest"] == 5  # it has a receive queue of its own

        exchange(a, b, 2)
        a.send([frame(MACS[60], a.mac)] * 3)
        until(lambda: running.show("uplinks", "lan")["frames_to_wire"] == 3)
        assert [running.show("queues", name)["frames_to_guest"] for name in "ab"] == [2, 7]
        running.do(contract(running, "lan").reset)
        assert running.show("uplinks", "lan")["bytes_to_wire"] == 0
        assert [running.show("vms", name)["frames_to_guest"] for name in "ab"] == [0, 0]


def test_the_drop_queue_has_the_counter_of_its_drop_wherever_it_is_counted(running: Running):
    running.configure({"lan": NO_FRAMES}, a=running.vm("a", uplink="lan"), b=running.vm("b", 2, uplink="lan"))
    gone = address_filter(mac_number(MACS[60]), None)
    running.do(contract(running, "lan").set_filter, "x", DROP_QUEUE, gone)
    with running.guest("a") as a:
        a.send([frame(MACS[60], a.mac), frame(a.mac, a.mac)])
        until(lambda: running.show("vms", "a")["drops"] == {"drop_queue": 1, "own_address": 1})
        running.do(contract(running, "lan").reset_statistics, None, DROP_QUEUE)
        assert running.show("vms", "a")["drops"] == {"own_address": 1}
        a.send([frame(MACS[60], a.mac)] * 2)
        until(lambda: running.show("vms", "a")["drops"] == {"drop_queue": 2, "own_address": 1})


def test_queue_pairs_that_are_only_sent_on_begin_anew_with_the_first(running: Running):
    """And those that are another owner's do not."""
    running.configure(a=running.vm("a", queue_pairs=3), b=running.vm("b", 2))
    second(running, "a")
    vm = running.engine.vms["a"]
    rows_of_a = running.engine.segment.rows["queue_state"][vm.first_queue : vm.first_queue + 3]
    rows_of_a["bytes_from_guest"] = 4
    running.do(contract(running).reset_statistics, None, rows(running)["a"]["queue"])
    assert [int(one) for one in vm.queue_rows()["bytes_from_guest"]] == [0, 4, 0]


# --- what may be refused in the middle --------------------------------------------------------------------------


def test_an_address_that_a_guest_comes_by_and_another_owner_has_is_forgotten(running: Running):
    """It is said; reloads and swaps go on, and nothing leaks."""
    keys: dict[str, Any] = {"learn": ("0e:fc:00:00:00:00/24",)}
    running.configure(a=running.vm("a", **keys), b=running.vm("b", 2))
    taken = address_filter(mac_number("0e:fc:00:00:00:01"), None)
    running.do(contract(running).set_filter, "x", DEFAULT_QUEUE, taken)
    queues = running.engine.queues[None]
    with running.guest("a") as a, running.guest("b") as b:
        a.send([frame(b.mac, "0e:fc:00:00:00:01")])
        assert b.receive(1, PATIENCE)
        until(lambda: running.show("vms", "a")["last_error"])
        assert running.show("vms", "a")["learned"] == []
        running.configure(a=running.vm("a", weight=50, **keys), b=running.vm("b", 2))
        before = set(queues.effects.first)
        running.do(queues.give_up, running.engine.vms["a"], "a test")
        assert len(queues.effects.first) == len(before)
        exchange(a, b)


def test_a_reload_that_a_filter_refuses_moves_nobody(tmp_path: Path):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two processors")
    with Running(tmp_path, tuple(cpus)) as running:
        running.configure(a=running.vm("a", processor=cpus[0]))
        taken = address_filter(mac_number(MACS[8]), None)
        running.do(contract(running).set_filter, "x", DEFAULT_QUEUE, taken)
        with pytest.raises(ConfigError):
            running.configure(a=running.vm("a", mac=(MACS[0], MACS[8]), processor=cpus[1]))
        vm = running.engine.vms["a"]
        assert (vm.config.processor, vm.cpu, vm.worker) == (cpus[0], cpus[0], 0)


def test_queue_pairs_without_a_receive_queue_follow_the_processor_of_their_vm(tmp_path: Path):
    """A guest sends on all of them."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two processors")
    with Running(tmp_path, tuple(cpus)) as running:
        for worker in (1, 0):
            running.configure(a=running.vm("a", queue_pairs=4, processor=cpus[worker]))
            assert [entry.worker for entry in running.engine.vms["a"].queues] == [worker] * 4


def test_switching_moderation_off_leaves_no_guest_without_its_call(running: Running):
    """An indication that is owed is made by control: nobody else would."""
    running.configure(a=running.vm("a", indications=1), b=running.vm("b", 2))
    state = running.engine.vms["a"].rings.state
    with running.guest("a") as a, running.guest("b") as b:
        got: list[bytes] = []
        waiter = threading.Thread(target=lambda: got.extend(a.receive(2, PATIENCE)))
        waiter.start()
        b.send([frame(a.mac, b.mac, 0)])
        until(lambda: a._count.frames_received)
        time.sleep(0.05)  # until it asks for the next call
        b.send([frame(a.mac, b.mac, 1)])
        until(lambda: int(state(0)["owed"]))
        running.configure(a=running.vm("a"), b=running.vm("b", 2))
        waiter.join(PATIENCE / 4)
        assert got == [frame(a.mac, b.mac, number) for number in range(2)]


def test_a_guest_that_stops_with_an_indication_owed_is_called_and_owed_nothing_more(running: Running):
    """Its processor would look for it every millisecond until the guest is back."""
    running.configure(a=running.vm("a", indications=1), b=running.vm("b", 2))
    state = running.engine.vms["a"].rings.state
    with running.guest("a") as a, running.guest("b") as b:
        b.send([frame(a.mac, b.mac, 0)])
        assert a.receive(1, PATIENCE) == [frame(a.mac, b.mac, 0)]
        a.virtqueues[0].want_calls()
        b.send([frame(a.mac, b.mac, 1)])
        until(lambda: int(state(0)["owed"]))
        a.stop()
        assert int(state(0)["owed"]) == 0
