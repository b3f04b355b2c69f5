# SPDX-License-Identifier: Apache-2.0
"""vmq show: the tables, literally; the notes below a VM; JSON as it came."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from vmq.cli import show

WEB: dict[str, Any] = {
    "name": "web", "state": "running", "mode": "listen", "socket": "/run/vmq/web.sock", "uplink": "lan",
    "mac": ["52:54:00:00:00:01"], "vlan": 10, "learned": ["0e:fd:00:01:02:03"], "processors": [1],
    "queue_pairs": 16, "queues_running": 1, "mtu": 1500, "features": ["mrg_rxbuf"],
    "frames_to_guest": 120000, "bytes_to_guest": 7680000, "frames_from_guest": 99, "bytes_from_guest": 6336,
    "indications": 3750, "drops": {"no_buffer": 12}, "last_error": None, "spoofed_mac": None,
}  # fmt: skip
DB: dict[str, Any] = {
    **WEB, "name": "database", "state": "faulted", "uplink": None, "vlan": None, "learned": [], "mac": ["52:54:00:00:00:02"],
    "queues_running": 0, "frames_to_guest": 0, "frames_from_guest": 7, "socket": "/run/vmq/db.sock", "drops": {},
    "last_error": {"what": "guest memory is not shared", "remedy": "Add share=on to the memory object"},
    "spoofed_mac": "52:54:00:00:00:99",
}  # fmt: skip
VMS = """\
name      state    mac                vlan      uplink  processors  queues_running   mtu  \
frames_to_guest  frames_from_guest  socket             drops
web       running  52:54:00:00:00:01  10        lan     1                        1  1500  \
         120000                 99  /run/vmq/web.sock  no_buffer 12
    learned: 0e:fd:00:01:02:03
database  faulted  52:54:00:00:00:02  untagged  -       1                        0  1500  \
              0                  7  /run/vmq/db.sock   -
    spoofed_mac: it sends from 52:54:00:00:00:99, which is not its mac. \
Remedy: Add it to mac, or set spoof_check to false
    last_error: guest memory is not shared. Remedy: Add share=on to the memory object
"""


def test_vms_are_a_table_with_notes_where_something_is_to_be_said(vmq, engine) -> None:
    """The words of the JSON, drops by name, remedies in words."""
    engine.answer([WEB, DB])

    assert vmq("show") == (0, VMS, "")
    assert engine.asked == [{"api": 1, "method": "show", "params": {"what": "vms"}}]


def test_a_vm_shows_what_became_of_the_list_that_its_guest_gave_its_device() -> None:
    """Followed, refused and why, expected in vain."""
    following = {
        "path": "/r/web.qmp", "state": "following", "nic": "net0", "followed": ["0e:fd:00:00:00:01"],
        "refused": [{"mac": "52:54:00:00:00:02", "why": "it is db's"}], "multicast": [], "vlans": "",
        "notes": [{"what": "the guest's device is promiscuous", "remedy": "list the addresses"}],
    }  # fmt: skip
    lines = show.text("vms", [{**WEB, "learned": [], "following": following}]).splitlines()

    assert lines[2:] == [
        "    followed: 0e:fd:00:00:00:01",
        "    refused: 52:54:00:00:00:02 (it is db's)",
        "    note: the guest's device is promiscuous. Remedy: list the addresses",
    ]
    assert show.text("vms", [{**WEB, "learned": [], "following": None}]).splitlines()[2:] == []


def test_a_vm_that_waits_shows_both_words_for_its_direction() -> None:
    """vmq and libvirt name the mode from opposite sides."""
    lines = show.text("vms", [{**WEB, "state": "listening", "learned": []}]).splitlines()
    assert lines[2:] == ["    mode: listen (QEMU is the client)"]

    lines = show.text("vms", [{**WEB, "state": "connecting", "mode": "connect", "learned": []}]).splitlines()
    assert lines[2:] == ["    mode: connect (QEMU is the server)"]


def test_queues() -> None:
    """One row a receive queue."""
    row = {
        "vm": "web", "queue": 0, "queue_id": 7, "own": True, "life": "Running", "processor": 1, "state": "running", "size_to_guest": 1024, "size_from_guest": 1024,
        "frames_to_guest": 64, "bytes_to_guest": 4096, "frames_from_guest": 1, "bytes_from_guest": 60,
        "indications": 2, "frames_per_indication": 32.0, "batches": [0, 0, 0, 0, 0, 2], "drops": {},
    }  # fmt: skip

    assert show.text("queues", [row]) == (
        "vm   queue  queue_id  own  life     processor  state    frames_to_guest  bytes_to_guest  frames_from_guest  bytes_from_guest  "
        "indications  frames_per_indication  drops\n"
        "web      0         7  yes  Running          1  running               64            4096                  1                60  "
        "          2                  32.00  -"
    )


def test_a_receive_queue_that_is_not_in_effect_has_its_reason_below() -> None:
    """A queue pair that is nobody's receive queue has no reason to give."""
    row = {"vm": "web", "queue": 1, "queue_id": 7, "why": "the guest has not enabled queue pair 1"}

    assert show.text("queues", [row]).splitlines()[2:] == ["    why: the guest has not enabled queue pair 1"]
    assert show.text("queues", [row | {"queue_id": None}]).splitlines()[2:] == []


def test_filters() -> None:
    """Untagged is a word, not a number; so is any VLAN."""
    rows: list[dict[str, Any]] = [
        {
            "mac": "52:54:00:00:00:01",
            "vlan": 10,
            "uplink": "lan",
            "vm": "web",
            "queue": 0,
            "source": "config",
            "priority": 0,
            "filter": "mac_destination == 52:54:00:00:00:01 and vlan_id == 10",
        },
        {
            "mac": "0e:fd:00:00:00:01",
            "vlan": None,
            "uplink": "lan",
            "vm": "b",
            "queue": 0,
            "source": "learned",
            "priority": 0,
        },
        {
            "mac": None,
            "vlan": "any",
            "uplink": "lan",
            "vm": None,
            "queue": "drop",
            "source": "x",
            "priority": 5,
            "filter": "ethertype == 0x9000",
        },
    ]

    assert show.text("filters", rows) == (
        "mac                vlan      uplink  vm   queue  source   priority  filter\n"
        "52:54:00:00:00:01  10        lan     web  0      config          0  "
        "mac_destination == 52:54:00:00:00:01 and vlan_id == 10\n"
        "0e:fd:00:00:00:01  untagged  lan     b    0      learned         0  -\n"
        "-                  any       lan     -    drop   x               5  ethertype == 0x9000"
    )


def test_uplinks() -> None:
    """The wire's directions, and its last error as a note."""
    row = {
        "name": "lan", "kind": "tap", "device": "vmqtap0", "state": "running", "mtu": 1500, "lanes": 1,
        "frames_from_wire": 5, "bytes_from_wire": 300, "frames_to_wire": 6, "bytes_to_wire": 360,
        "drops": {"host_share": 4}, "membership": None, "last_error": {"what": "the device is down", "remedy": ""},
    }  # fmt: skip

    assert show.text("uplinks", [row]) == (
        "name  kind  device   state     mtu  lanes  membership  frames_from_wire  bytes_from_wire  frames_to_wire  "
        "bytes_to_wire  drops\n"
        "lan   tap   vmqtap0  running  1500      1           -                 5              300               6  "
        "          360  host_share 4\n"
        "    last_error: the device is down"
    )


def test_processors() -> None:
    """Why a processor was chosen is the last word."""
    row = {
        "cpu": 1, "thread": 4711, "state": "sleeping", "why": "not CPU 0", "vms": ["web"], "queues": 1,
        "polled": 0, "bursts": 10, "sleeps": 2, "wakeups": 2, "busy_ratio": 0.5,
    }  # fmt: skip

    assert show.text("processors", [row]) == (
        "cpu  state     thread  vms  queues  polled  bursts  sleeps  wakeups  busy_ratio  why\n"
        "  1  sleeping    4711  web       1       0      10       2        2        0.50  not CPU 0"
    )


def test_json_has_every_field_as_it_came(vmq, engine) -> None:
    """A list at top level; fields this version does not know are kept."""
    engine.answer([{**WEB, "of_a_later_version": 1}])

    code, out, err = vmq("show", "vms", "--json")

    assert (code, err) == (0, "")
    assert json.loads(out) == [{**WEB, "of_a_later_version": 1}]


def test_what_is_to_be_done_about_the_configuration_is_below_it() -> None:
    row = {
        "file": "/etc/vmq.toml",
        "refused": "no",
        "corrected": True,
        "missing": ["vm a: gone", "uplink b: gone"],
    }
    assert show.text("configuration", [row]).splitlines()[2:] == [
        "    corrected: the file was written since it was refused; SIGHUP to vmq run, which reads it again",
        "    missing: vm a: gone",
        "    missing: uplink b: gone",
    ]
    assert show.text("configuration", [row | {"corrected": False, "missing": []}]).splitlines()[2:] == []


def test_nothing_is_said_in_words(vmq, engine) -> None:
    """A header without rows looks like a fault."""
    engine.answer([])

    assert vmq("show", "filters") == (0, "no filters\n", "")
    assert vmq("sh", "f", "-j") == (0, "[]\n", "")


def test_watch_shows_it_again_until_interrupted(vmq, engine, monkeypatch) -> None:
    """With --json one line a time, for another program."""
    engine.answer([{"name": "a"}], [{"name": "b"}])
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", pause)

    assert vmq("show", "--json", "--watch", "0.5") == (130, '[{"name": "a"}]\n[{"name": "b"}]\n', "")
    assert pauses == [0.5, 0.5]


@pytest.mark.parametrize("answer", [None, {}, [1], "x"])
def test_an_answer_that_is_no_list_of_rows_is_a_failure(vmq, engine, answer: object) -> None:
    """Two versions that do not understand each other say so."""
    engine.answer(answer)

    assert vmq("show") == (
        1,
        "",
        "the engine's answer is not a list of rows. Remedy: Use the vmq of the engine's version\n",
    )


def test_columns_are_fields_of_the_rows() -> None:
    """A table has no word that the JSON does not have."""
    assert set(show.COLUMNS["vms"].split()) <= set(WEB)


def test_histograms_have_a_picture_below_their_row() -> None:
    """Bins in the JSON, bars in the text."""
    row = {
        "vm": "web", "queue": 0, "measured": True, "frames": 3, "p50_ns": 512, "p99_ns": 1024, "p999_ns": None,
        "latency": [2, 1, 0], "latency_below_ns": [512, 1024], "batches": [0, 4, 0], "batches_below": [2, 4],
    }  # fmt: skip
    lines = show.text("histograms", [row]).splitlines()
    assert lines[0].split() == ["vm", "queue", "measured", "frames", "p50_ns", "p99_ns", "p999_ns"]
    assert [line.split()[0] for line in lines[2:]] == ["latency", "latency", "batches"]
    assert lines[2].split()[-3:] == ["2", "66.7", "%"]
