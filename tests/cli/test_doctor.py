# SPDX-License-Identifier: Apache-2.0
"""vmq doctor: what it prints, what it asks, how it ends, and what it does not import."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.control.daemon import Process
from tests.doctor.hosts import EIGHT, host, links, nic
from tests.engine.running import FIRST_CPU, MACS, frame, until
from vmq.cli import build_parser
from vmq.cli.show import COLUMNS
from vmq.config import Engine, Packet, Tap, Vm
from vmq.doctor import CATALOGUE, Facts

CONFIG = """
[engine]
api = "{folder}/api.sock"
processors = "0"
[uplink.lan]
kind = "packet"
device = "eth0"
[vm.web]
uplink = "lan"
mac = "52:54:00:00:00:01"
mtu = 9000
[vm.db]
uplink = "lan"
mac = "52:54:00:00:00:02"
"""
D28 = """\
1 error

errors
D28  VM web: MTUs do not match
     seen    {file}: [vm.web] mtu: 9000; expected at most 1500
     seen    MTU of uplink lan: 1500; expected the smallest on the way
     why     Frames that are longer than the smallest MTU on the way disappear, while short ones pass.
     fix     mtu = 1500 in [vm.web] of {file}, or mtu = 9000 in [uplink.lan]
     restart nothing: on SIGHUP vmq run reads its file again
     disturbs VM web
     undo    mtu = 9000 in [vm.web]
     source  Intel 82599: specification clarification 14
"""
DOMAIN = """<domain><name>web</name><devices><interface type='vhostuser'><mac address='52:54:00:00:00:01'/>
<source type='unix' path='{folder}/web.sock' mode='client'/></interface></devices></domain>"""


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with eight processors and one NIC, whatever this one is."""
    recorded = host(*EIGHT, links=links(nic("eth0", mtu=1500)))
    monkeypatch.setattr(Facts, "read", classmethod(lambda *_, **__: recorded))


@pytest.fixture
def file(tmp_path: Path, facts: None) -> str:
    path = tmp_path / "vmq.toml"
    path.write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMQ_API", raising=False)


def test_a_finding_is_printed_whole(vmq, file) -> None:
    """Evidence, reason, fix and the way back; exit code 1 for an error."""
    assert vmq("doctor", "D28", "--config", file) == (1, D28.format(file=file), "")


def test_findings_stand_by_severity_and_the_rest_below(vmq, file) -> None:
    """What could not be looked at says why."""
    code, out, err = vmq("doctor", "--config", file)
    lines = out.splitlines()

    assert (code, err, lines[0]) == (1, "", "1 error, 1 warning")
    assert [line for line in lines if line in ("errors", "warnings", "notes", "not looked at")] == [
        "errors",
        "warnings",
        "not looked at",
    ]
    assert (
        "D09  The host refuses what vmq asks of it: no engine runs: nothing was asked of the host yet"
        in lines
    )
    assert "does not apply: D01, D02, D03, D13, D23, D24, D25, D26, D27, D33" in lines
    assert any(line.startswith("clear: ") for line in lines)


def test_a_warning_alone_ends_with_0(vmq, file) -> None:
    code, out, _ = vmq("doctor", "d04", "--config", file)

    assert (code, out.splitlines()[:3]) == (0, ["1 warning", "", "warnings"])


def test_rules_that_are_named_say_what_they_looked_at(vmq, file) -> None:
    code, out, _ = vmq("doctor", "D05", "D23", "--config", file)

    assert code == 0
    assert out.splitlines()[0] == "nothing found"
    assert (
        "D05  Two receive queues on one physical core: /sys/devices/system/cpu/cpu0/topology/thread_siblings_list: 0"
        in out
    )
    assert "D23  An indirection table leads to one processor: a VM has one active receive queue" in out


def test_json_has_every_rule_and_the_same_words(vmq, file) -> None:
    code, out, err = vmq("doctor", "--json", "--config", file)
    records = json.loads(out)

    assert (code, err) == (1, "")
    assert sorted({record["code"] for record in records}) == [entry.code for entry in CATALOGUE]
    (found,) = [record for record in records if record["code"] == "D28" and record["status"] == "found"]
    assert f"     fix     {found['fix']['command']}\n" in D28.format(file=file)


def test_an_accepted_finding_is_shown_as_such_and_is_no_error(vmq, file) -> None:
    """`ignore` of [doctor]; JSON has it whole."""
    path = Path(file)
    path.write_text(path.read_text() + '[doctor]\nignore = "d28"\n')

    code, out, _ = vmq("doctor", "D28", "--config", file)
    assert (code, out.splitlines()[:4]) == (
        0, ["nothing found", "", "accepted, by ignore of [doctor]", "D28  VM web: MTUs do not match"],
    )  # fmt: skip
    (record,) = [
        one
        for one in json.loads(vmq("doctor", "D28", "--json", "--config", file)[1])
        if one["subject"] == "VM web"
    ]
    assert (record["status"], record["severity"], record["accepted"]) == ("found", "error", True)
    assert vmq("doctor", "D28", "--fix", "--yes", "--config", file)[1] == "nothing to fix\n"


def test_what_concerns_one_vm(vmq, file) -> None:
    assert vmq("doctor", "D28", "--vm", "web", "--config", file)[0] == 1
    assert vmq("doctor", "D28", "--vm", "db", "--config", file)[0] == 0


def test_a_domain_that_does_not_run_yet(vmq, file, tmp_path) -> None:
    """<memoryBacking> is missing."""
    domain = tmp_path / "web.xml"
    domain.write_text(DOMAIN.format(folder=tmp_path))

    code, out, _ = vmq("doctor", "D06", "--libvirt", str(domain), "--config", file)
    assert code == 1
    assert "<access mode='shared'/>" in out


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["D99"], "vmq doctor: there is no rule D99. Remedy: Name one from D01 to D34\n"),
        (["--yes"], "vmq doctor --yes: says nothing alone. Remedy: Add --fix\n"),
        (["--vm", "x"], "vmq doctor --vm: there is no VM x. Remedy: Name one of: web, db\n"),
        (
            ["--libvirt", "/none.xml"],
            "/none.xml: cannot be read: No such file or directory. Remedy: Give the path of a readable file\n",
        ),
    ],
)
def test_a_wrong_request_ends_with_2(vmq, file, words: list[str], wrong: str) -> None:
    assert vmq("doctor", "--config", file, *words) == (2, "", wrong)


def test_a_configuration_with_mistakes_ends_with_2(vmq, tmp_path, facts) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[vms]\n")

    assert vmq("doctor", "--config", str(path)) == (
        2,
        "",
        f"{path}: vms: unknown table. Remedy: Did you mean vm?\n",
    )


# --- a running engine ---------------------------------------------------------------------------------------

WEB: dict[str, Any] = {
    "name": "web", "state": "connected", "queues_running": 0, "mac": ["52:54:00:00:00:01"], "uplink": None, "vlan": None,
    "drops": {"to_guest_not_running": 3}, "last_error": {"what": "ring 0: the driver has not started it", "remedy": "wait"},
}  # fmt: skip


def test_a_running_engine_is_asked_for_its_views(vmq, engine, facts) -> None:
    """Without any configuration."""
    engine.answer([WEB], [], [], [{"cpu": 1, "effective": [1]}], [], [])

    code, out, _ = vmq("doctor", "D06")

    assert [question["params"]["what"] for question in engine.asked] == [
        "vms",
        "queues",
        "uplinks",
        "processors",
        "misses",
        "configuration",
    ]
    assert code == 1
    assert "D06  VM web: Asked for, and not in effect\n" in out
    assert "last_error: ring 0: the driver has not started it\n" in out


def test_an_engine_without_a_view_leaves_its_rules_unknown(vmq, engine, facts) -> None:
    """One of another version."""
    engine.refuse(status="NOT_FOUND", message="nothing called so to show", remedy="")

    code, out, _ = vmq("doctor", "D32", "D06")

    assert code == 0
    assert "D32  A guest needs one more MAC address: no engine runs, or it does not tell near misses" in out


def test_a_named_engine_that_does_not_answer_is_a_failure(vmq, file) -> None:
    """Its socket was named, so somebody expects it there."""
    code, out, err = vmq("doctor", "--api", "/nonexistent", "--config", file)

    assert (code, out) == (1, "")
    assert err.startswith("/nonexistent: no engine answers")


def test_an_answer_that_is_no_list_of_rows_is_a_failure(vmq, engine, facts) -> None:
    engine.answer({"vms": 1})

    assert (
        vmq("doctor")[2]
        == "the engine's answer is not a list of rows. Remedy: Use the vmq of the engine's version\n"
    )


def test_nothing_that_compiles_is_imported() -> None:
    """It is asked in loops and hooks, too."""
    program = (
        "import sys\n"
        "from vmq.cli import main\n"
        "main(['doctor', '--json'])\n"
        "print([name for name in ('numba', 'llvmlite', 'asyncio', 'tomlkit', 'vmq.jit', 'vmq.engine') if name in sys.modules], file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"VMQ_API": "/nonexistent", "PYTHONPATH": ":".join(sys.path)},
    )

    assert ran.stderr.splitlines()[-1] == "[]"
    assert len(json.loads(ran.stdout)) >= len(CATALOGUE)


def test_the_page_for_administrators_names_what_exists() -> None:
    """docs/administrators.md: keys of the configuration, verbs and views of vmq."""
    page = (Path(__file__).parents[2] / "docs/administrators.md").read_text()
    records = {"engine": (Engine,), "uplink": (Tap, Packet), "vm": (Vm,)}
    keys = set(re.findall(r"`\[(engine|uplink|vm)(?:\.NAME)?\] (\w+)[^`]*`", page))
    verbs = set(re.findall(r"`vmq (\w+)(?: (\w+))?[^`]*`", page.replace("\n", " ")))

    assert len(keys) > 8
    assert {
        (table, key) for table, key in keys if not any(key in one.__struct_fields__ for one in records[table])
    } == set()
    assert {verb for verb, _ in verbs} <= set(build_parser().get_default("verbs"))
    assert {view for verb, view in verbs if verb == "show"} <= set(COLUMNS)
    codes = set(re.findall(r"\bD\d\d\b", page))
    assert codes <= {entry.code for entry in CATALOGUE}


# --- for real -----------------------------------------------------------------------------------------------

STRANGER = "52:54:00:00:00:99"
REAL = """
[engine]
api = "{folder}/api.sock"
processors = "{cpu}"
[uplink.lan]
kind = "pcap"
read = "{folder}/wire.pcap"
repeat = true
rate = 1000
[vm.wrong]
uplink = "lan"
vlan = 10
mac = "{macs[0]}"
[vm.twin]
uplink = "lan"
mac = "{macs[1]}"
[vm.moved]
uplink = "lan"
mac = "{macs[2]}"
[vm.nested]
uplink = "lan"
mac = "{macs[3]}"
[vm.well]
uplink = "lan"
mac = "{macs[4]}"
"""


def capture(path: Path, *frames: bytes) -> None:
    """A capture file. pcap "File Header", "Packet Record"."""
    records = [struct.pack("<IIII", 0, 0, len(one), len(one)) + one for one in frames]
    path.write_bytes(b"".join([struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1), *records]))


def test_mistakes_of_a_real_engine_and_its_guests_are_found(vmq, tmp_path) -> None:
    """Wrong VLAN, a twin on the wire, an address that changed, one more address; and nothing about the one without."""
    wrong = frame(MACS[0], MACS[50])
    tagged = wrong[:12] + bytes.fromhex("81000014") + wrong[12:]
    capture(tmp_path / "wire.pcap", tagged, frame("ff:ff:ff:ff:ff:ff", MACS[1]))
    process = Process(tmp_path)
    process.path.write_text(REAL.format(folder=tmp_path, cpu=FIRST_CPU, macs=MACS))
    guests = {name: MACS[number] for number, name in enumerate(("moved", "nested", "well"), 2)}
    with process.start().ready(), contextlib.ExitStack() as stack:
        moved, nested, well = (stack.enter_context(process.guest(name, mac)) for name, mac in guests.items())
        for guest, sources in ((moved, (STRANGER,)), (nested, (nested.mac, STRANGER)), (well, (well.mac,))):
            guest.send([frame(MACS[60], source) for source in sources])
            assert guest.sent()
        until(lambda: len([row for row in process.show("misses") if row["vm"]]) == 4, "four near misses")
        code, out, _ = vmq("doctor", "D12", "D15", "D16", "D32", "--json", "--config", str(process.path))
        assert code == 1
        assert (
            vmq("doctor", "D12", "D15", "D16", "D32", "--vm", "well", "--config", str(process.path))[0] == 0
        )

    found = {one["code"]: one for one in json.loads(out) if one["status"] == "found"}
    assert {code: one["subject"] for code, one in found.items()} == {
        "D12": "VM wrong",
        "D15": "VM twin and a station on uplink lan",
        "D16": "VM moved",
        "D32": "VM nested",
    }
    assert found["D12"]["fix"]["command"].startswith("vlan = 20 in [vm.wrong]")
    assert STRANGER in found["D16"]["fix"]["command"]
