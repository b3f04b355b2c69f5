# SPDX-License-Identifier: Apache-2.0
"""All 34, each with a status; rules that fail; one VM's findings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.hosts import DB, EIGHT, LAN, WEB, host, links, nic, qemu, see, vm
from vmq.doctor import catalogue
from vmq.doctor.catalogue import CATALOGUE, Report, examine
from vmq.doctor.situation import Situation
from vmq.ethtool import Driver

CODES = [f"D{number:02}" for number in range(1, 35)]
KINDS = {"plan", "live", "probe", "prove"}


def healthy(**more: Any) -> Situation:
    """An engine with one guest on a good host: everything as it should be."""
    driver = Driver("ice", "1", features={"rx-vlan-filter": False, "rx-vlan-hw-parse": True})
    facts = host(
        *EIGHT,
        nodes=("0-7",),
        links=links(nic("eth0", 30, node=0, mtu=1500, speed=25000, driver=driver)),
        irqs={30: (2,)},
    )
    facts = replace(
        facts,
        cpus={n: replace(cpu, governor="performance", sleeps=((0, 20),)) for n, cpu in facts.cpus.items()},
    )
    text = (
        '[engine]\nprocessors = "1"\n'
        + LAN
        + vm("web", uplink="lan", vlan=10, socket="/run/vmq/web.sock", queue_pairs=2)
    )
    rows: dict[str, list[dict[str, Any]]] = {
        "vms": [{"name": "web", "state": "running", "queues_running": 1, "processors": [1], "last_error": None,
                 "drops": {}, "features": ["net_f_mrg_rxbuf"]}],
        "queues": [{"vm": "web", "queue": 0, "processor": 1, "offered_to_guest": 9, "forwarded": 9, "drops": {},
                    "size_to_guest": 1024, "batches": [1, 8]}],
        "uplinks": [{"name": "lan", "state": "up", "lost": 0, "segmented": 0, "drops": {}, "mtu": 1500,
                     "settings": [{"name": "mtu", "requested": None, "effective": 1500, "why": ""}]}],
        "processors": [{"cpu": 1, "effective": [1], "busy_ratio": 0.3}],
        "misses": [],
    }  # fmt: skip
    return see(text, facts, qemu(), **(rows | more))


def test_every_code_is_there_once_and_in_order() -> None:
    assert [entry.code for entry in CATALOGUE] == CODES
    for entry in CATALOGUE:
        assert set(entry.kinds.split()) <= KINDS
        assert entry.title
        assert entry.source


@pytest.mark.parametrize(
    "situation", [Situation(), healthy(), see(LAN + vm("web", uplink="lan"), host(*EIGHT))]
)
def test_every_code_is_in_the_answer_with_what_its_status_needs(situation: Situation) -> None:
    """Whatever there is to look at: unknown and not_applicable say why, clear says what was looked at."""
    report = examine(situation)

    assert sorted({one.code for one in report.findings}) == CODES
    assert report.failed == ()
    for one in report.findings:
        assert one.evidence or one.status in ("unknown", "not_applicable"), one.code
        assert one.why or one.status == "clear", one.code


def test_a_healthy_system_has_no_finding() -> None:
    """And says what it looked at."""
    report = examine(healthy())

    assert [(one.code, one.subject) for one in report.found] == []
    assert not report.wrong
    clear = {one.code for one in report.findings if one.status == "clear"}
    assert clear == {
        "D04", "D05", "D06", "D07", "D08", "D09", "D12", "D13", "D14", "D15", "D16", "D18", "D19", "D20", "D21", "D28", "D29", "D30",
        "D31", "D32", "D34",
    }  # fmt: skip


def test_an_error_is_wrong_and_a_warning_is_not() -> None:
    """Exit codes 1 and 0."""
    note = [{"name": "lan", "state": "up", "segmented": 4}]
    miss = {"kind": "duplicate_mac", "vm": "web", "mac": WEB, "vlan": 10, "uplink": "lan", "count": 1}

    assert [one.severity for one in examine(healthy(uplinks=note)).found] == ["note"]
    assert not examine(healthy(uplinks=note)).wrong
    assert examine(healthy(misses=[miss])).wrong


def test_a_rule_that_fails_is_reported_and_hides_no_other() -> None:
    """An engine of another version may answer anything."""
    report = examine(healthy(queues=[{"vm": "web", "batches": "many"}]))

    assert report.failed == ("D31",)
    assert report.wrong
    (said,) = [one for one in report.findings if one.code == "D31"]
    assert (said.status, said.why[:31]) == ("unknown", "the rule could not be run: Type")
    assert {one.code for one in report.findings} == set(CODES)


def test_some_codes_or_one_kind() -> None:
    assert {one.code for one in examine(healthy(), ("D12", "D15")).findings} == {"D12", "D15"}
    planned = {one.code for one in examine(healthy(), kind="plan").findings}
    assert planned == {entry.code for entry in CATALOGUE if "plan" in entry.kinds.split()}
    assert {"D04", "D28"} <= planned
    assert "D31" not in planned


def test_what_concerns_one_vm() -> None:
    """Itself, its uplink, the processors and the host; not another VM, nor another uplink."""
    text = '[engine]\nprocessors = "0"\n' + LAN + '[uplink.b]\nkind = "packet"\ndevice = "eth1"\n'
    text += vm("web", uplink="lan", mtu=9000) + vm("db", DB, uplink="b", mtu=9000)
    facts = host(
        *EIGHT, links=links(nic("eth0", 30, mtu=1500), nic("eth1", 31, mtu=1500)), irqs={30: (0,), 31: (0,)}
    )

    everything = [(one.code, one.subject) for one in examine(see(text, facts), ("D04", "D28")).found]
    of_web = [(one.code, one.subject) for one in examine(see(text, facts), ("D04", "D28"), "web").found]

    assert of_web == [("D04", "processor 0"), ("D04", "uplink lan"), ("D28", "VM web")]
    assert set(everything) - set(of_web) == {("D04", "uplink b"), ("D28", "VM db")}
    quiet = text.replace("mtu = 9000", "mtu = 1500", 1)
    (clear,) = examine(see(quiet, facts), ("D28",), "web").findings
    assert (clear.status, clear.evidence[0].value) == ("clear", "concerns other VMs: 1")


def test_the_page_tells_every_rule_as_the_catalogue_does() -> None:
    """docs/doctor.md: code, kinds and severity, a row each."""
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    rows = re.findall(r"^\| (D\d\d) \| [^|]+ \| ([a-z, ]+) \| (\w+) \| ([^|]+) \|$", page, re.MULTILINE)

    assert [(code, kinds.split(", "), severity) for code, kinds, severity, _ in rows] == [
        (entry.code, entry.kinds.split(), entry.severity) for entry in CATALOGUE
    ]
    never = [entry.code for entry in CATALOGUE if entry.rule(Situation())[0].why in vars(catalogue).values()]
    told = [code for code, _, _, here in rows if here.startswith(("impossible", "not yet", "not applicable"))]
    assert told == never


def test_an_empty_report_is_not_wrong() -> None:
    assert not Report(()).wrong


def test_what_is_accepted_is_found_and_not_wrong() -> None:
    """`ignore` of [doctor]: the finding stays whole; what is not there is not accepted."""
    text = LAN + vm("web", uplink="lan", mtu=9000) + '[doctor]\nignore = ["D28", "D15"]\n'
    report = examine(see(text, host(*EIGHT, links=links(nic("eth0", mtu=1500)))), ("D15", "D28"))

    assert [(one.code, one.status, one.severity) for one in report.accepted] == [("D28", "found", "error")]
    assert (report.found, report.wrong) == ((), False)
