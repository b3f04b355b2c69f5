# SPDX-License-Identifier: Apache-2.0
"""Explain tells what the data plane does: the same decision for every vector, and why, in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.running import FIRST_CPU, MACS, NO_FRAMES, Running, frame, until
from vmq.abi.ethernet import mac_number
from vmq.cli.explain import text
from vmq.config import Memory
from vmq.control import explain as module
from vmq.control.explain import explain
from vmq.dataplane import reasons, state
from vmq.dataplane.steer import steer
from vmq.engine.engine import Engine
from vmq.errors import ApiError
from vmq.jit import address_of, at
from vmq.publisher import Segment
from vmq.worker import Worker

BROADCAST, MULTICAST, LINK_LOCAL = "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "01:80:c2:00:00:0e"
NOBODY = "52:54:00:00:00:99"
FCOE = "0e:fc:00:00:00:00/24"
NAMES = [name for name, _ in reasons.DROPS]


class Steering:
    """The kernel's decision, on the tables of a running engine and scratch of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.segment = Segment(1)
        self.worker = Worker(self.segment, 0, FIRST_CPU)
        self.w = self.worker.row

    def close(self) -> None:
        del self.w
        self.worker.close()
        self.segment.close()

    def __call__(self, mac: int, vid: int, uplink: int, source: int, forward: int) -> dict[str, Any]:
        t = at(int(self.engine.segment.engine["tables"]), 1, state.tables)[0]
        books, bytes_of = (
            np.zeros(1, state.account),
            np.frombuffer(mac.to_bytes(16, "little"), np.uint8).copy(),
        )
        row = at(int(self.w["frames"]), state.FRAMES, state.frame)[0]
        row["address"], row["vid"], row["uplink"], row["source"] = address_of(bytes_of), vid, uplink, source
        row["account"] = address_of(books)
        for name in ("delivery_count", "touched_count", "outgoing_count"):
            self.w[name] = 0
        steer(t, self.w, 0, 1 if source >= 0 and uplink >= 0 else 0, forward, False)
        deliveries = at(int(self.w["deliveries"]), state.DELIVERIES, state.delivery)
        queues = [int(one["queue"]) for one in deliveries[: int(self.w["delivery_count"])]]
        lists = at(int(self.w["todo"]), state.MAX_QUEUES, state.todo)
        for queue in queues:
            lists[queue]["first"] = state.NONE
        owners = {vm.first_queue: vm.name for vm in self.engine.vms.values()}
        drops = [NAMES[code] for code in np.flatnonzero(books["drops"][0])]
        return {
            "members": sorted(owners[queue] for queue in queues),
            "to_wire": bool(self.w["outgoing_count"]),
            "drop": drops[0] if drops else None,
        }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """VMs in several segments, none of them connected."""
    with Running(tmp_path_factory.mktemp("explain")) as one:
        vm = one.vm
        one.configure(
            {"lan": NO_FRAMES, "wan": Memory(count=0, link_local="forward")},
            a=vm("a", 1, uplink="lan", mac=(MACS[0], MACS[10]), learn=(FCOE,), learn_max=1),
            b=vm("b", 2, uplink="lan"),
            ten=vm("ten", 3, uplink="lan", vlan=10),
            tenth=vm("tenth", 4, uplink="lan", vlan=10, spoof_check=False),
            far=vm("far", 1, uplink="wan"),
            alone=vm("alone", 5),
            pair=vm("pair", 6),
            deaf=vm("deaf", 7, uplink="lan", accept=()),
            bridge=vm("bridge", 8, uplink="lan", vlan=10, accept=("multicast", "unknown")),
            monitor=vm("monitor", 9, vlan=11, accept=("broadcast", "unknown")),
            peer=vm("peer", 1, vlan=11),
        )
        yield one


@pytest.fixture(scope="module")
def steering(running: Running) -> Iterator[Steering]:
    one = Steering(running.engine)
    yield one
    one.close()


def asked(running: Running, **params: Any) -> dict[str, Any]:
    return running.do(explain, running.engine, params)


def decided(running: Running, steering: Steering, params: dict[str, Any]) -> None:
    """Both, for a frame that was let in."""
    question, decision = module.ask(running.engine, params), module.Decision()
    vid = module.admit(running.engine, question, decision)
    if decision.drop:
        return
    module.decide(running.engine, question, vid, decision)
    uplink = running.engine.uplink_number(question.uplink)
    kernel = steering(
        question.mac,
        vid,
        uplink,
        question.vm.number if question.vm else state.NONE,
        int(question.uplink == "wan"),
    )
    ours = {
        "members": sorted(vm.name for vm in decision.vms),
        "to_wire": decision.to_wire,
        "drop": decision.drop,
    }
    kernel["drop"] = kernel["drop"] or ""
    assert ours == kernel, params


ADDRESSES = [MACS[0], MACS[1], MACS[2], MACS[3], MACS[4], MACS[10], NOBODY, BROADCAST, MULTICAST, LINK_LOCAL]
TAGS = [None, 0, 10, 11, 4095]
SOURCES: list[dict[str, str]] = [
    {"uplink": "lan"},
    {"uplink": "wan"},
    *(
        {"source": name}
        for name in ("a", "b", "ten", "tenth", "far", "alone", "pair", "deaf", "bridge", "monitor", "peer")
    ),
]


def test_explain_and_the_kernel_agree_on_the_whole_truth_table(running: Running, steering: Steering):
    """vmq-semantics 5.2: filter × untagged, priority-tagged, VID = n, VID ≠ n; every destination, every source."""
    for mac, tag, source in itertools.product(ADDRESSES, TAGS, SOURCES):
        decided(running, steering, {"mac": mac, "vlan": tag, **source})


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.sampled_from(ADDRESSES), st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))),
    st.one_of(st.none(), st.integers(0, 4095)),
    st.sampled_from(SOURCES),
)
def test_explain_and_the_kernel_agree_on_any_frame(
    running: Running, steering: Steering, mac: str, tag: int | None, source: dict[str, str]
):
    """B5: on random frames."""
    decided(running, steering, {"mac": mac, "vlan": tag, **source})


def tagged(data: bytes, tci: int) -> bytes:
    return data[:12] + b"\x81\x00" + tci.to_bytes(2, "big") + data[12:]


def admissions() -> Iterator[bytes]:
    """Frames of the VM with the address MACS[0], in all ways that `admit` tells apart."""
    for source in (MACS[0], MACS[10], MACS[1], NOBODY, "00:00:00:00:00:00", "03:00:00:00:00:01"):
        yield frame(MACS[1], source)
        for tci in (0, 0xE000, 10, 0xFFFF):
            yield tagged(frame(MACS[1], source), tci)
    for size in (1514, 1515, 1518, 1519):
        yield frame(MACS[1], MACS[0], size=size)
        yield tagged(frame(MACS[1], MACS[0], size=size), 0)
    for size in (14, 15, 16, 17):
        yield tagged(frame(MACS[1], MACS[0]), 0)[:size]
    for to in (MACS[0], NOBODY, BROADCAST, LINK_LOCAL):
        yield frame(to, MACS[0])


@pytest.mark.parametrize("keys", [{}, {"vlan": 10}, {"spoof_check": False}], ids=str)
def test_explain_and_the_data_plane_agree_on_what_a_guest_may_send(tmp_path: Path, keys: dict[str, Any]):
    """A guest sends each frame, and the drop that is counted is the one that was told."""
    with Running(tmp_path) as running:
        running.configure(
            {"lan": NO_FRAMES},
            a=running.vm("a", 1, uplink="lan", mac=(MACS[0], MACS[10]), **keys),
            b=running.vm("b", 2, uplink="lan"),
        )
        books = running.engine.segment.rows["queue_state"][0]
        with running.guest("a", buffer_bytes=2048) as a:
            for data in admissions():
                before = books["account"].copy()
                told = asked(running, hex=data.hex(), source="a")
                a.send([data])
                assert a.sent()
                counted = {
                    NAMES[code] for code in np.flatnonzero(books["account"]["drops"] - before["drops"])
                }
                expected = {told["drop"]} - {None, "to_guest_not_running", "to_guest_too_long"}
                assert counted == expected, (data[:18].hex(), len(data))
                assert books["account"]["forwarded"] - before["forwarded"] == (not expected)


# --- in words ---------------------------------------------------------------------------------------------------


def test_a_filter_is_named_and_what_stands_behind_it(running: Running):
    """The VM is not there: that is the answer."""
    answer = asked(running, mac=MACS[0], uplink="lan")
    assert (answer["verdict"], answer["vm"], answer["queue"]) == ("dropped", "a", 0)
    assert answer["drop"] == "to_guest_not_running"
    assert answer["reason"] == "to_guest_not_running: no front-end is connected"
    assert answer["remedy"] == f"start the VM: QEMU connects to {running.path('a')}"
    assert answer["steps"] == [
        "it comes from uplink lan, untagged: it belongs to the untagged segment on uplink lan",
        f"{MACS[0]} in the untagged segment on uplink lan is a receive filter of VM a (configured)",
        f"VM a: listening, receive queue 0 on processor {FIRST_CPU}; no front-end is connected",
    ]


def test_what_matches_nothing_goes_to_the_default_queue(running: Running):
    answer = asked(running, mac=NOBODY, uplink="lan")
    assert (answer["verdict"], answer["vm"], answer["queue"]) == ("default queue", None, 0)
    assert answer["reason"].startswith("default_queue: ")
    assert answer["remedy"] == "add the address to mac of the VM that it is for"


@pytest.mark.parametrize(
    ("params", "step", "remedy"),
    [
        (
            {"mac": MACS[2], "uplink": "lan", "vlan": 20},
            "near miss: VM ten has this address in VLAN 10 on uplink lan",
            "set vlan of [vm.ten] to 20, or send in VLAN 10",
        ),
        (
            {"mac": MACS[2], "uplink": "lan"},
            "near miss: VM ten has this address in VLAN 10 on uplink lan",
            "leave vlan out of [vm.ten], or send in VLAN 10",
        ),
        (
            {"mac": MACS[1], "uplink": "lan", "vlan": 10},
            "near miss: VM b has this address in the untagged segment on uplink lan",
            "set vlan of [vm.b] to 10, or send untagged",
        ),
        (
            {"mac": MACS[1], "uplink": "wan"},
            "near miss: VM b has this address in the untagged segment on uplink lan",
            'set uplink of [vm.b] to "wan", or send it on lan',
        ),
        (
            {"mac": MACS[1], "source": "alone"},
            "near miss: VM b has this address in the untagged segment on uplink lan",
            "leave uplink out of [vm.b], or send it on lan",
        ),
        (
            {"mac": MACS[4], "source": "a"},
            "near miss: VM alone has this address in the untagged segment without uplink",
            'set uplink of [vm.alone] to "lan", or send it on no uplink: from a VM without one',
        ),
    ],
)
def test_a_near_miss_is_said_with_the_remedy(
    running: Running, params: dict[str, Any], step: str, remedy: str
):
    """The same address in another VLAN, or on another uplink: the usual mistake."""
    answer = asked(running, **params)
    assert step in answer["steps"]
    assert answer["remedy"] == remedy


def test_who_does_not_accept_a_flood_is_named(running: Running):
    answer = asked(running, mac=BROADCAST, uplink="lan")
    assert answer["members"] == ["a", "b"]
    assert 'without "broadcast" in accept: deaf' in answer["steps"]


def test_an_unknown_address_is_flooded_to_those_who_accept_it_and_a_near_miss_still(running: Running):
    """Where nobody does, nothing is said of it."""
    answer = asked(running, mac=MACS[1], uplink="lan", vlan=10)
    assert (answer["verdict"], answer["members"]) == ("flooded to 1 VM", ["bridge"])
    assert any(step.startswith("near miss: VM b has this address") for step in answer["steps"])
    assert "every VM of VLAN 10 on uplink lan that accepts unknown frames gets it: bridge" in answer["steps"]
    assert asked(running, mac=NOBODY, source="ten")["verdict"] == "flooded to 1 VM and the wire"
    assert not any("accepts" in step for step in asked(running, mac=NOBODY, uplink="lan")["steps"])


def test_a_flood_names_its_members_and_leaves_out_its_source(running: Running):
    answer = asked(running, mac=BROADCAST, source="a")
    assert answer["verdict"] == "flooded to 1 VM and the wire"
    assert answer["members"] == ["b"]
    assert "b: no front-end is connected" in answer["reason"]
    assert asked(running, mac=MULTICAST, uplink="lan", vlan=10)["members"] == ["ten", "tenth", "bridge"]


def test_link_local_frames_are_a_matter_of_policy(running: Running):
    """link_local = "drop" or "forward" of the uplink."""
    answer = asked(running, mac=LINK_LOCAL, uplink="lan")
    assert (answer["verdict"], answer["drop"]) == ("dropped", "link_local")
    assert answer["remedy"] == 'set link_local = "forward" in [uplink.lan]'
    assert asked(running, mac=LINK_LOCAL, uplink="wan")["members"] == ["far"]
    assert asked(running, mac=LINK_LOCAL, source="alone")["remedy"] is None


@pytest.mark.parametrize(
    ("params", "drop"),
    [
        ({"mac": MACS[0], "source": "a"}, "own_address"),
        ({"mac": MACS[1], "source": "a", "vlan": 10}, "from_guest_vlan"),
        ({"mac": NOBODY, "source": "alone"}, "no_filter"),
        ({"hex": frame(MACS[1], "01:00:00:00:00:01").hex(), "source": "a"}, "from_guest_source"),
        ({"hex": frame(MACS[1], "00:00:00:00:00:00").hex(), "source": "a"}, "from_guest_source"),
        ({"hex": frame(MACS[1], NOBODY).hex(), "source": "a"}, "from_guest_spoofed"),
        ({"hex": frame(MACS[0], MACS[1]).hex(), "source": "a"}, "from_guest_spoofed"),
        ({"hex": frame(MACS[1], MACS[0], size=1515).hex()}, "from_guest_too_long"),
        ({"hex": frame(MACS[1], NOBODY, size=1515).hex(), "uplink": "lan"}, "from_wire_too_long"),
        ({"hex": (frame(MACS[1], NOBODY)[:12] + b"\x81\x00\x00").hex(), "uplink": "lan"}, "vlan_truncated"),
        ({"hex": (frame(MACS[1], MACS[0])[:12] + b"\x81\x00\x00").hex()}, "vlan_truncated"),
    ],
)
def test_what_is_not_let_in_has_its_drop(running: Running, params: dict[str, Any], drop: str):
    """And the sentence of the table of drops."""
    answer = asked(running, **params)
    assert (answer["verdict"], answer["drop"]) == ("dropped", drop)
    assert answer["reason"] == f"{drop}: {dict(reasons.DROPS)[drop]}"


def test_a_spoofed_source_says_whose_it_is(running: Running):
    of_nobody = asked(running, hex=frame(MACS[1], NOBODY).hex(), source="a")
    assert of_nobody["remedy"] == f'add "{NOBODY}" to mac of [vm.a], or set its spoof_check = false'
    of_a_neighbour = asked(running, hex=frame(MACS[0], MACS[1]).hex(), source="a")
    assert of_a_neighbour["remedy"] == f"let it send from its own address: {MACS[1]} is b's"


def test_a_source_that_may_be_learned_or_is_not_checked_is_let_in(running: Running):
    learned = asked(running, hex=frame(NOBODY, "0e:fc:00:00:00:01").hex(), source="a")
    assert learned["verdict"] == "sent to the wire"
    assert any("may learn" in step for step in learned["steps"])
    unchecked = asked(running, hex=frame(NOBODY, NOBODY).hex(), source="tenth")
    assert unchecked["to_wire"]
    assert any("spoof_check is off" in step for step in unchecked["steps"])


def test_a_frame_says_by_its_source_who_sent_it_unless_an_uplink_is_named(running: Running):
    """Its bytes have destination, source and tag."""
    data = frame(NOBODY, MACS[1]).hex()
    assert asked(running, hex=data)["verdict"] == "sent to the wire"
    assert asked(running, hex=data, uplink="lan")["verdict"] == "default queue"
    tagged = frame(MACS[2], NOBODY)
    tagged = tagged[:12] + b"\x81\x00\xe0\x0a" + tagged[12:]
    answer = asked(running, hex=tagged.hex(), uplink="lan")
    assert (answer["vm"], answer["vlan"]) == ("ten", 10)
    assert asked(running, hex=tagged.hex(), uplink="lan", vlan=11)["verdict"] == "default queue"
    assert asked(running, hex=tagged.hex(), uplink="lan", mac=MACS[0], vlan=0)["vm"] == "a"


def test_a_source_may_be_an_address(running: Running):
    assert asked(running, mac=NOBODY, source=MACS[1])["steps"][0].startswith("VM b sends it untagged")
    assert asked(running, mac=NOBODY, source=NOBODY, uplink="lan")["verdict"] == "default queue"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "no frame is given"),
        ({"mac": "web"}, "mac: 'web' is no MAC address"),
        ({"mac": 7}, "is no MAC address"),
        ({"mac": "52:54:00:00:00:zz"}, "is no MAC address"),
        ({"mac": MACS[0], "vlan": 4096, "uplink": "lan"}, "vlan: 4096 is no VLAN id"),
        ({"mac": MACS[0], "vlan": "10", "uplink": "lan"}, "vlan: '10' is no VLAN id"),
        ({"mac": MACS[0], "vlan": True, "uplink": "lan"}, "vlan: True is no VLAN id"),
        ({"mac": MACS[0], "uplink": "moon"}, "no uplink 'moon'"),
        ({"mac": MACS[0], "uplink": ["lan"]}, "no uplink ['lan']"),
        ({"mac": MACS[0]}, "uplink: there are several"),
        ({"mac": MACS[0], "source": "nosuch"}, "source: 'nosuch' is no MAC address"),
        ({"mac": MACS[0], "source": "b", "uplink": "wan"}, "uplink: b is not on wan"),
        ({"hex": "00"}, "1 bytes are no frame"),
        ({"hex": "00" * 13}, "13 bytes are no frame"),
        ({"hex": "0" * 29}, "hex: this is no frame"),
        ({"hex": "zz" * 14}, "hex: this is no frame"),
        ({"hex": 14}, "1 bytes are no frame"),
        ({"hex": "00" * 70000}, "hex: this is no frame"),
        ({"mac": MACS[0], "colour": "red"}, "no parameter 'colour'"),
    ],
)
def test_a_question_that_is_none_is_refused_in_words(running: Running, params: dict[str, Any], words: str):
    """INVALID_PARAMETER, with the remedy; exit 2."""
    with pytest.raises(ApiError) as refused:
        asked(running, **params)
    assert refused.value.status == "INVALID_PARAMETER"
    assert words in str(refused.value)
    assert refused.value.remedy
    assert refused.value.exit_code == 2


# --- with guests ------------------------------------------------------------------------------------------------


def test_a_guest_that_runs_gets_it_and_what_it_missed_is_said(tmp_path: Path):
    """What explain says is what then happens; the command line prints it."""
    with Running(tmp_path) as running:
        running.configure(
            {"lan": NO_FRAMES}, a=running.vm("a", 1, uplink="lan"), b=running.vm("b", 2, uplink="lan")
        )
        with running.guest("a") as a:
            assert asked(running, mac=MACS[1], source="a")["verdict"] == "dropped"
            a.send([frame(MACS[1], a.mac, number) for number in range(3)])
            assert a.sent()
            until(lambda: running.show("vms", "b")["drops"] == {"to_guest_not_running": 3})
            with running.guest("b") as b:
                answer = asked(running, hex=frame(MACS[1], MACS[0]).hex())
                assert (answer["verdict"], answer["vm"], answer["queue"]) == ("delivered", "b", 0)
                assert answer["steps"][-1] == "VM b has missed frames so far: to_guest_not_running 3"
                assert text(answer).startswith("delivered: vm b, queue 0\n  1. VM a sends it untagged")
                a.send([frame(b.mac, a.mac)])
                assert b.receive(1)
                long = asked(running, hex=frame(MACS[1], NOBODY, size=1514).hex())
                assert long["verdict"] == "delivered"
                assert asked(running, mac=BROADCAST)["verdict"] == "flooded to 2 VMs"
                running.engine.segment.rows["port_state"][running.engine.vms["b"].number]["fault"] = (
                    reasons.CHAIN_LOOP
                )
                faulted = asked(running, mac=MACS[1])
                assert "it loops" in faulted["reason"]
                running.engine.segment.rows["port_state"][running.engine.vms["b"].number]["fault"] = 0


def test_a_driver_that_has_not_started_is_the_reason(tmp_path: Path):
    with Running(tmp_path) as running:
        running.configure({"lan": NO_FRAMES}, a=running.vm("a", 1, uplink="lan"))
        guest = running.guest("a")
        guest.frontend.connect()
        guest.frontend.handshake(guest.features)
        answer = asked(running, mac=MACS[0])
        assert answer["reason"] == "to_guest_not_running: ring 0: the driver has not started it"
        assert answer["remedy"] == "look into the guest: its driver starts the queue"
        guest.close()


def test_without_an_uplink_a_frame_comes_from_nowhere(tmp_path: Path):
    """Name a VM that sends it."""
    with Running(tmp_path) as running:
        running.pair()
        answer = asked(running, mac=MACS[0])
        assert answer["steps"][0].startswith("it comes from nowhere: there is no uplink, untagged")
        assert answer["vm"] == "a"
        assert asked(running, mac=NOBODY, source="a")["drop"] == "no_filter"


def test_sources_are_numbers_of_the_wire(running: Running):
    """The first byte on the wire is the lowest."""
    question = module.ask(running.engine, {"hex": frame(MACS[1], MACS[0]).hex()})
    assert (question.mac, question.source_mac) == (mac_number(MACS[1]), mac_number(MACS[0]))
