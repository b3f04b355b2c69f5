# SPDX-License-Identifier: Apache-2.0
"""What `vmq show` has: the words of its columns, read back from what is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.running import FIRST_CPU, MACS, NO_FRAMES, Running, exchange, frame, until
from vmq.abi.ethernet import mac_number
from vmq.cli.show import COLUMNS, text
from vmq.contract import DROP_QUEUE
from vmq.control.views import drops, show
from vmq.dataplane import reasons
from vmq.errors import ApiError, ConfigError
from vmq.filters import Field, FieldTest, Filter, Flag, Kind

TO_NOBODY = FieldTest(Field.MAC_DESTINATION, Kind.EQUAL, mac_number(MACS[90]))
VIEWS = ("vms", "queues", "filters", "uplinks", "processors", "configuration")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        one.configure(
            {"lan": NO_FRAMES},
            a=one.vm("a", 1, uplink="lan"),
            b=one.vm("b", 2, uplink="lan", mac=(MACS[1], MACS[5]), queue_pairs=3),
            c=one.vm("c", 3, vlan=7),
        )
        yield one


@pytest.mark.parametrize("what", VIEWS)
def test_every_row_has_every_column_and_is_json(running: Running, what: str):
    """The words of the tables are those of the JSON."""
    rows = running.show(what)
    assert rows
    for row in rows:
        assert set(COLUMNS[what].split()) - {"membership"} <= set(row)
    assert json.loads(json.dumps(rows)) == rows
    assert len(text(what, rows).splitlines()) >= 1 + len(rows)


def test_a_vm_counts_what_its_guest_got_and_sent(running: Running):
    with running.guest("a") as a, running.guest("b") as b:
        exchange(a, b, 5)
        until(lambda: running.show("vms", "a")["frames_from_guest"] == 5)
        until(lambda: running.show("vms", "a")["indications"])  # counted after the guest was told
        row = running.show("vms", "a")
        assert (row["frames_to_guest"], row["bytes_to_guest"]) == (5, 300)
        assert (row["frames_placed"], row["bytes_placed"], row["bytes_copied"]) == (0, 0, 300)
        assert (row["frames_from_guest"], row["bytes_from_guest"]) == (5, 300)
        assert row["state"] == "running"
        assert row["features"] == [
            "net_f_mrg_rxbuf",
            "ring_f_indirect_desc",
            "ring_f_event_idx",
            "f_version_1",
        ]
        assert row["indications"] >= 1
        assert row["frames_per_indication"] == round(5 / row["indications"], 1)
        assert row["last_error"] is None


def test_a_drop_stands_by_its_name(running: Running):
    """Never as a bare sum, and never when there was none."""
    with running.guest("a") as a:
        a.send([frame(MACS[1], a.mac, number) for number in range(4)])
        a.send([frame(MACS[0], a.mac)])
        assert a.sent()
        until(lambda: running.show("vms", "b")["drops"] == {"to_guest_not_running": 4})
        until(lambda: running.show("vms", "a")["drops"] == {"own_address": 1})


def test_drops_are_summed_by_name_over_rows_and_columns():
    rows = np.zeros((3, reasons.DROP_COUNT), np.int64)
    rows[:, reasons.RUNT] = (1, 2, 3)
    one = np.zeros(reasons.DROP_COUNT, np.int64)
    one[reasons.LINK_LOCAL] = 1 << 40
    assert drops(rows, one) == {"link_local": 1 << 40, "runt": 6}
    assert drops(one * 0) == {}


def test_a_queue_is_shown_when_it_runs_or_has_counted(running: Running):
    """Queue 0 always."""
    assert [(row["vm"], row["queue"]) for row in running.show("queues")] == [("a", 0), ("b", 0), ("c", 0)]
    with running.guest("b", queues=3) as b:
        rows = [row for row in running.show("queues") if row["vm"] == "b"]
        assert [row["queue"] for row in rows] == [0, 1, 2]
        assert {row["state"] for row in rows} == {"running"}
        assert {row["size_to_guest"] for row in rows} == {64}
        b.stop()
        assert [row["state"] for row in running.show("queues") if row["vm"] == "b"] == ["stopped"]


def test_filters_name_their_vm_and_where_they_come_from(running: Running):
    rows = [
        (row["mac"], row["vlan"], row["uplink"], row["vm"], row["source"]) for row in running.show("filters")
    ]
    assert rows == [
        (MACS[0], None, "lan", "a", "config"),
        (MACS[1], None, "lan", "b", "config"),
        (MACS[5], None, "lan", "b", "config"),
        (MACS[2], 7, None, "c", "config"),
    ]


def test_a_receive_queue_that_the_guest_has_not_enabled_says_what_is_lost(running: Running):
    """What its owner asked for stands beside what is in force; a queue pair without one is nobody's own."""
    contract = running.engine.contracts["lan"]
    asked = {"vm": "b", "weight": 40, "moderation": {"indications": 3000, "frames": 8}}
    number = running.do(contract.allocate, "x", asked)
    running.do(contract.allocation_complete, "x", [number])
    running.do(contract.set_filter, "x", number, Filter((TO_NOBODY,), 5))

    def row(index: int) -> dict[str, Any]:
        return next(row for row in running.show("queues") if (row["vm"], row["queue"]) == ("b", index))

    assert (row(1)["queue_id"], row(1)["why"]) == (number, "")  # the VM is not there
    with running.guest("b"):
        until(lambda: row(0)["state"] == "running")
        assert row(1)["why"] == (
            "the guest has not enabled queue pair 1: frames for it are dropped (to_guest_not_running); "
            "ethtool -L DEVICE combined 2 in the guest"
        )
    with running.guest("b", queues=3):
        until(lambda: running.show("vms", "b")["queues_running"] == 3)
        one = row(1)
        assert (one["own"], one["why"], row(2)["own"], row(2)["queue_id"]) == (True, "", None, None)
        assert one["effective"]["weight"] == one["requested"]["weight"] == 40
        assert one["effective"]["moderation"] == one["requested"]["moderation"]
        assert one["effective"]["suggested_buffers"] == one["size_to_guest"] == 64
        assert one["difference"]["suggested_buffers"] == "the guest's ring decides"


@pytest.mark.parametrize(
    ("vlan", "flags", "shown"),
    [(None, Flag(0), "any"), (7, Flag(0), 7), (None, Flag.VLAN_UNTAGGED_OR_ZERO, None)],
)
def test_a_filter_says_which_vlans_it_takes(running: Running, vlan: int | None, flags: Flag, shown: Any):
    tests = [TO_NOBODY] if vlan is None else [TO_NOBODY, FieldTest(Field.VLAN_ID, Kind.EQUAL, vlan)]
    running.do(running.engine.contracts["lan"].set_filter, "x", DROP_QUEUE, Filter(tuple(tests), 5, flags))

    (row,) = [row for row in running.show("filters") if row["source"] == "x"]
    assert (row["vlan"], row["priority"], row["queue"]) == (shown, 5, "drop")


def test_an_uplink_is_the_sum_of_its_lanes_and_what_it_says_of_itself(running: Running):
    with running.guest("a") as a:
        a.send([frame(MACS[50], a.mac, number) for number in range(7)])
        assert a.sent()
        until(lambda: running.show("uplinks", "lan")["frames_to_wire"] == 7)
    row = running.show("uplinks", "lan")
    assert (row["kind"], row["state"], row["lanes"], row["mtu"]) == ("memory", "up", 1, 1500)
    assert row["bytes_to_wire"] == 7 * 60
    assert row["drops"] == {}


def test_a_processor_is_where_the_kernel_says(running: Running):
    """Effective is read back: somebody else may move the thread."""
    (row,) = running.show("processors")
    assert (row["cpu"], row["effective"]) == (FIRST_CPU, [FIRST_CPU])
    assert row["why"] == "a test"
    assert (row["vms"], row["queues"]) == (3, 0)
    until(lambda: running.show("processors")[0]["state"] == "sleeping")
    others = sorted(os.sched_getaffinity(0) - {FIRST_CPU})
    if others:
        os.sched_setaffinity(row["thread"], set(others))
        assert running.show("processors")[0]["effective"] == others
        os.sched_setaffinity(row["thread"], {FIRST_CPU})


def test_what_stands_in_the_way_is_said(running: Running):
    """A guest whose driver has not started."""
    guest = running.guest("a")
    guest.frontend.connect()
    guest.frontend.handshake(guest.features)
    error = running.show("vms", "a")["last_error"]
    assert error["what"] == "ring 0: the driver has not started it"
    guest.close()


def test_a_view_that_is_none_is_said_in_words(running: Running):
    with pytest.raises(ApiError, match="nothing called 'dogs' to show") as refused:
        show(running.engine, "dogs")
    assert refused.value.exit_code == 2


def test_a_file_that_was_written_since_it_was_refused_is_told_from_the_one_that_was(
    running: Running, tmp_path: Path
):
    running.engine.where = str(tmp_path / "vmq.toml")
    Path(running.engine.where).write_text("one")
    with pytest.raises(ConfigError):
        running.configure(a=running.vm("a", processor=4000))
    assert running.show("configuration")[0]["corrected"] is False
    os.utime(running.engine.where, ns=(1, 1))
    assert running.show("configuration")[0]["corrected"] is True
    running.configure(a=running.vm("a", 1))
    assert running.show("configuration")[0]["corrected"] is False


def test_the_configuration_is_what_is_in_force_and_why_a_later_one_is_not(running: Running):
    """Until one is taken."""
    (before,) = running.show("configuration")
    assert (before["file"], before["refused"]) == (os.path.abspath("test.toml"), None)
    assert before["in_force"]["vm.c"]["vlan"] == 7
    with pytest.raises(ConfigError):
        running.configure(a=running.vm("a", processor=4000))
    (refused,) = running.show("configuration")
    assert refused["in_force"] == before["in_force"]
    assert "4000" in refused["refused"]
    running.configure(a=running.vm("a", 1))
    (taken,) = running.show("configuration")
    assert (taken["refused"], "vm.c" in taken["in_force"]) == (None, False)
