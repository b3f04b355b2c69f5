# SPDX-License-Identifier: Apache-2.0
"""What `vmq explain` says of generic filters, and what then happens to the very frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.running import MACS, PATIENCE, Running, until
from vmq.abi.ethernet import mac_number
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE
from vmq.control.explain import explain
from vmq.filters import Field, FieldTest, Filter, Flag, Kind, PacketType

TO = FieldTest(
    Field.MAC_DESTINATION, Kind.MASK_EQUAL, mac_number("52:54:00:00:00:00"), mac_number("ff:ff:ff:00:00:00")
)
ANY = FieldTest(Field.MAC_DESTINATION, Kind.NOT_EQUAL, mac_number("02:00:00:00:00:00"))


def of(kind: int, *tests: FieldTest, priority: int) -> Filter:
    return Filter((ANY, FieldTest(Field.ETHERTYPE, Kind.EQUAL, kind), *tests), priority)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """a has a second receive queue for one type of frames; others are dropped, or left to addresses."""
    with Running(tmp_path_factory.mktemp("filtered")) as one:
        one.configure(a=one.vm("a", 1, queue_pairs=2), b=one.vm("b", 2), c=one.vm("c", 3))
        contract = one.engine.contracts[""]
        mine = one.do(contract.allocate, "x", {"vm": "a"})
        one.do(contract.allocation_complete, "x", [mine])
        one.do(contract.set_filter, "x", mine, of(0x9000, priority=5))
        one.do(contract.set_filter, "x", DROP_QUEUE, of(0x9001, priority=6))
        one.do(contract.set_filter, "x", DEFAULT_QUEUE, of(0x9002, priority=9))
        one.do(contract.set_filter, "x", DROP_QUEUE, of(0x9002, priority=3))
        one.do(
            contract.set_filter,
            "x",
            DROP_QUEUE,
            Filter((TO, FieldTest(Field.ETHERTYPE, Kind.EQUAL, 0x9003)), -1),
        )
        yield one


def frame(to: str, source: str, kind: int) -> bytes:
    return (bytes.fromhex((to + source).replace(":", "")) + kind.to_bytes(2, "big")).ljust(60, b"\x55")


@pytest.mark.parametrize("kind", [0x9000, 0x9001, 0x9002, 0x9003, 0x9004])
@pytest.mark.parametrize("to", [MACS[0], MACS[2], "ff:ff:ff:ff:ff:ff"])
def test_what_is_said_of_a_frame_is_what_becomes_of_it(running: Running, kind: int, to: str):
    data = frame(to, MACS[1], kind)
    said = running.do(explain, running.engine, {"hex": data.hex(), "source": "b"})
    with running.guest("a", queues=2) as a, running.guest("b") as b, running.guest("c") as c:
        until(lambda: len(running.engine.vms["a"].running) == 2)
        said = running.do(explain, running.engine, {"hex": data.hex(), "source": "b"})
        before = running.show("queues", "b")["drops"].get("drop_queue", 0)
        b.send([data])
        assert b.sent(PATIENCE)
        got = {
            name: [(packet.queue, packet.frame) for packet in guest.receive_packets(2, 0.1)]
            for name, guest in (("a", a), ("c", c))
        }
        dropped = running.show("queues", "b")["drops"].get("drop_queue", 0) - before
    assert dropped == int(said["drop"] == "drop_queue")
    reached = {name for name, packets in got.items() if packets}
    assert reached == (set() if dropped else set(said["members"]))
    if said["queue"] is not None and reached:
        assert got[said["vm"]] == [(said["queue"], data)]


def test_the_filter_that_takes_a_frame_is_named(running: Running):
    said: dict[str, Any] = running.do(
        explain, running.engine, {"hex": frame(MACS[2], MACS[1], 0x9000).hex(), "source": "b"}
    )
    assert (said["vm"], said["queue"]) == ("a", 1)
    assert any("a filter of priority 5 takes it" in step and "0x9000" in step for step in said["steps"])


def test_without_its_bytes_a_filter_is_named_and_not_decided(running: Running):
    """Nor is it "delivered": a filter of a type of frames may take it."""
    with running.guest("c"):
        until(lambda: running.show("vms", "c")["state"] == "running")
        said = running.do(explain, running.engine, {"mac": MACS[2], "source": "b"})
    assert said["members"] == ["c"]
    assert any("which only its bytes can say" in step for step in said["steps"])
    assert said["verdict"] == "delivered, unless a filter takes it"


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        one.configure(a=one.vm("a", 1), b=one.vm("b", 2), v=one.vm("v", 3, vlan=7), w=one.vm("w", 4, vlan=7))
        yield one


def equal(field: Field, value: int) -> FieldTest:
    return FieldTest(field, Kind.EQUAL, value)


TO_A = equal(Field.MAC_DESTINATION, mac_number(MACS[0]))
TO_V = equal(Field.MAC_DESTINATION, mac_number(MACS[2]))
FROM_B = equal(Field.MAC_SOURCE, mac_number(MACS[1]))
IP = equal(Field.ETHERTYPE, 0x0800)
GROUP = "ff:ff:ff:ff:ff:ff"
ZERO = Flag.VLAN_UNTAGGED_OR_ZERO


@pytest.mark.parametrize(
    ("to", "source", "one", "drop", "doubtful"),
    [
        (MACS[0], "b", Filter((TO_A,), 5), True, False),
        (MACS[0], "b", Filter((TO_A,), 5, ZERO), True, False),
        (MACS[0], "b", Filter((TO_A, FROM_B), 5), True, False),
        (MACS[0], "b", Filter((ANY, equal(Field.PACKET_TYPE, PacketType.UNICAST)), 5), True, False),
        (MACS[0], "b", Filter((ANY, equal(Field.PACKET_TYPE, PacketType.MULTICAST)), 5), False, False),
        (MACS[0], "b", Filter((TO_V, IP), 5), False, False),
        (MACS[0], "b", Filter((TO_A, equal(Field.VLAN_ID, 7)), 5), False, False),
        (MACS[0], "b", Filter((TO_A, equal(Field.PRIORITY, 3)), 5), False, False),
        (MACS[0], "b", Filter((TO_A, IP), 5), False, True),
        (MACS[0], "b", Filter((TO_A,), 5, Flag.ENCAPSULATION), False, True),
        (MACS[0], "b", Filter((TO_A,), -1), False, False),
        (MACS[2], "w", Filter((TO_V, equal(Field.VLAN_ID, 7)), 5), True, False),
        (MACS[2], "w", Filter((TO_V, equal(Field.PRIORITY, 3)), 5), False, True),
        (MACS[2], "w", Filter((TO_V,), 5, ZERO), False, False),
        (GROUP, "b", Filter((ANY, equal(Field.PACKET_TYPE, PacketType.BROADCAST)), 5), True, False),
    ],
)
def test_what_addresses_and_tag_decide_is_decided(
    plain: Running, to: str, source: str, one: Filter, drop: bool, doubtful: bool
):
    """A filter that cannot match is left out, one that matches whatever the bytes takes the frame."""
    plain.do(plain.engine.contracts[""].set_filter, "x", DROP_QUEUE, one)
    said = plain.do(explain, plain.engine, {"mac": to, "source": source})
    assert (said["drop"] == "drop_queue") is drop
    assert ("unless" in said["verdict"], any("only its bytes" in step for step in said["steps"])) == (
        doubtful,
        doubtful,
    )


def test_a_filter_that_may_come_before_the_one_that_takes_it_is_another(plain: Running):
    """Where both lead to the same place there is no doubt."""
    set_filter = plain.engine.contracts[""].set_filter
    plain.do(set_filter, "x", DROP_QUEUE, Filter((TO_A,), 5))
    plain.do(set_filter, "x", DROP_QUEUE, Filter((TO_A, IP), 6))
    said = plain.do(explain, plain.engine, {"mac": MACS[0], "source": "b"})
    assert (said["drop"], said["verdict"]) == ("drop_queue", "dropped")
    plain.do(set_filter, "x", DEFAULT_QUEUE, Filter((TO_A, equal(Field.ETHERTYPE, 0x0806)), 7))
    said = plain.do(explain, plain.engine, {"mac": MACS[0], "source": "b"})
    assert (said["drop"], said["verdict"]) == ("drop_queue", "dropped, unless another filter takes it")


def test_a_tag_that_is_asked_for_is_the_frames(plain: Running):
    """Its bytes have none."""
    plain.do(
        plain.engine.contracts[""].set_filter, "x", DROP_QUEUE, Filter((TO_V, equal(Field.VLAN_ID, 7)), 5)
    )
    data = frame(MACS[2], "02:00:00:00:00:09", 0x9000).hex()
    assert plain.do(explain, plain.engine, {"hex": data, "vlan": 7})["drop"] == "drop_queue"
    assert plain.do(explain, plain.engine, {"hex": data})["drop"] != "drop_queue"
