# SPDX-License-Identifier: Apache-2.0
"""vmq plan: the table, who shares and why; of this host or of a recorded one; nothing started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_topology import host, record

FILE = """
[engine]
api = "{folder}/api.sock"

[uplink.lan]
kind = "packet"
device = "eth0"

[vm.web]
uplink = "lan"
mac = "52:54:00:00:00:01"
vlan = 10

[vm.db]
uplink = "lan"
mac = "52:54:00:00:00:02"
queue_pairs = 1

[vm.build]
mac = "52:54:00:00:00:03"
"""
TEXT = """\
name   mac                vlan      uplink  queue_pairs  processors  placement  shares_with  why
web    52:54:00:00:00:01  10        lan              16  2           switched   build        the fewest VMs of 2,4
db     52:54:00:00:00:02  untagged  lan               1  4           switched   -            the fewest VMs of 2,4
build  52:54:00:00:00:03  untagged  -                16  2           switched   web          the fewest VMs of 2,4

cpu  node  core  vms  names
  2     0  2,3     2  web,build
  4     0  4,5     1  db
left out: 0-1, left to the host
left out: 3,5, second threads of a core

capacity of engine: 2 processors for 3 VMs: chosen from 6 allowed: 6 - 2 left to the host - 2 second threads of a core = 2
placement switched: the engine writes the frames: nothing else is asked for
placement switched: its frames come from other VMs, so the engine writes them
D08 processor 2: web, build share it: when all are busy in all their queue pairs, each gets 1 burst of 2. \
Remedy: none: this host has no other core for vmq
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vmq.toml"
    path.write_text(FILE.format(folder=tmp_path), encoding="utf-8")
    return path


@pytest.fixture
def six(tmp_path: Path) -> str:
    """Three cores of two threads."""
    files = host("0-5", "0-1", "2-3", "4-5", nodes=("0-5",))
    return str(record(tmp_path / "six", files))


def test_the_plan_is_a_table_and_who_shares_and_why(vmq, file: Path, six: str) -> None:
    """Exit 0: sharing is no mistake."""
    assert vmq("plan", str(file), "--topology", six) == (0, TEXT, "")


def test_in_json_it_has_the_words_of_show(vmq, file: Path, six: str) -> None:
    """And requested, effective and why of the placement."""
    code, out, err = vmq("plan", str(file), "--topology", six, "--json")
    found = json.loads(out)

    assert (code, err) == (0, "")
    assert set(found) == {"vms", "processors", "left_out", "capacity", "notes", "not_planned"}
    assert [(row["name"], row["processors"]) for row in found["vms"]] == [
        ("web", [2]),
        ("db", [4]),
        ("build", [2]),
    ]
    assert found["vms"][0]["placement"]["requested"] == "switched"
    assert found["notes"][0]["code"] == "D08"


def test_without_a_topology_it_is_this_host(vmq, file: Path) -> None:
    """And nothing is left behind: no socket, no device."""
    code, out, err = vmq("pl", str(file))

    assert (code, err) == (0, "")
    assert out.startswith("name   mac ")
    assert [path.name for path in file.parent.iterdir()] == ["vmq.toml"]


def test_a_file_without_vms_has_a_plan_too(vmq, file: Path, six: str) -> None:
    file.write_text("", encoding="utf-8")

    code, out, _ = vmq("plan", str(file), "--topology", six)

    assert code == 0
    assert out.startswith("no vms\n\ncpu  node  core  vms  names\n")
    assert "capacity of engine: 2 processors for 0 VMs" in out


def test_what_run_would_refuse_ends_with_2(vmq, file: Path, six: str) -> None:
    """The file's mistakes, then what only this host can tell; a topology that is none."""
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"eth0"', '"eth0"\nprocessors = "7"'), encoding="utf-8")
    code, out, err = vmq("plan", str(file), "--topology", six)
    assert (code, out) == (2, "")
    assert "[uplink.lan] processors: there is no processor 7: this process may use 0-5" in err

    file.write_text(text.replace('"eth0"', '"eth0"\nnuma_node = 1'), encoding="utf-8")
    code, out, err = vmq("plan", str(file), "--topology", six)
    assert (code, out) == (2, "")
    assert err.startswith(
        f"{file}: [uplink.lan] numa_node: none of the processors 2,4 is on node 1. Remedy: "
    )

    code, _, err = vmq("plan", str(file), "--topology", str(file.parent))
    assert code == 2
    assert "no processors are listed there" in err


def test_receive_queues_of_clients_are_said_not_to_be_in_the_plan(vmq, file: Path, six: str, engine) -> None:
    """Those of the engine that answers at the file's socket; of another host nobody asks."""
    rows = [
        {"vm": "web", "queue": 0, "queue_id": 1, "owner": "config", "processor": 0, "weight": 100},
        {
            "vm": "web",
            "queue": 1,
            "queue_id": 3,
            "owner": "backup",
            "processor": 2,
            "weight": 50,
            "drops": {},
        },
        {"vm": "web", "queue": 2, "queue_id": None, "owner": None, "processor": 2, "weight": None},
    ]
    engine.answer(rows)
    _, out, _ = vmq("plan", str(file))
    told = [line for line in out.splitlines() if line.startswith("not planned")]
    assert told == [
        "not planned: receive queue 3 of backup for web, on processor 2: a client's, in the engine that runs"
    ]
    _, out, _ = vmq("plan", str(file), "--json")
    assert json.loads(out)["not_planned"] == [
        {"queue_id": 3, "owner": "backup", "vm": "web", "processor": 2, "weight": 50}
    ]
    assert [asked["params"] for asked in engine.asked] == [{"what": "queues"}] * 2
    assert "not planned" not in vmq("plan", str(file), "--topology", six)[1]
    assert len(engine.asked) == 2


@pytest.mark.parametrize("answer", [b"nonsense\n", b'{"result": 1}\n', b'{"result": [1]}\n', b""])
def test_an_engine_that_answers_strangely_does_not_keep_anybody_from_planning(
    vmq, file: Path, engine, answer: bytes
) -> None:
    engine.answers = [answer]
    code, out, err = vmq("plan", str(file), "--json")
    assert (code, err, json.loads(out)["not_planned"]) == (0, "", [])
