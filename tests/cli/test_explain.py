# SPDX-License-Identifier: Apache-2.0
"""vmq explain: the question it asks, the decision it prints."""

from __future__ import annotations

import json

import pytest

FRAME = "ffffffffffff5254000000010806"
ANSWER = {
    "verdict": "dropped",
    "vm": None,
    "queue": None,
    "reason": "no filter matches 52:54:00:00:00:01 in VLAN 20",
    "steps": ["uplink lan", "VLAN 20: no VM"],
    "remedy": "Set vlan of [vm.web] to 20, or send in VLAN 10",
}


def test_a_decision_is_verdict_reason_steps_remedy(vmq, engine) -> None:
    """Why a VM gets nothing, in words."""
    engine.answer(ANSWER)

    assert vmq("explain", "--mac", "52-54-00-00-00-01", "--vlan", "20", "--uplink", "lan") == (
        0,
        (
            "dropped\n"
            "reason: no filter matches 52:54:00:00:00:01 in VLAN 20\n"
            "  1. uplink lan\n"
            "  2. VLAN 20: no VM\n"
            "remedy: Set vlan of [vm.web] to 20, or send in VLAN 10\n"
        ),
        "",
    )
    assert engine.asked == [
        {"api": 1, "method": "explain", "params": {"mac": "52:54:00:00:00:01", "vlan": 20, "uplink": "lan"}}
    ]


def test_a_delivery_names_the_vm_and_its_queue(vmq, engine) -> None:
    """Queue 0 is a queue."""
    engine.answer(
        {"verdict": "delivered", "vm": "web", "queue": 0, "reason": "", "steps": [], "remedy": None}
    )

    assert vmq("explain", "--mac", "ff:ff:ff:ff:ff:ff")[1] == "delivered: vm web, queue 0\n"


@pytest.mark.parametrize(
    "written",
    [FRAME, FRAME.upper(), "ff ff ff ff ff ff 52 54 00 00 00 01 08 06", "0xffffffffffff 0x5254000000010806"],
)
def test_a_frame_is_read_as_tools_print_it(vmq, engine, written: str) -> None:
    """tcpdump -x, Wireshark's hex dump, scapy."""
    engine.answer(ANSWER)

    code, out, _ = vmq("explain", "--hex", written, "--json")

    assert (code, json.loads(out)) == (0, ANSWER)
    assert engine.asked[0]["params"] == {"hex": FRAME}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "vmq explain: no frame is given. Remedy: Give --mac MAC, --hex FRAME or both"),
        (
            ["--mac", "web"],
            'vmq explain --mac: "web" is not a MAC address. Remedy: Write it as 52:54:00:00:00:01',
        ),
        (
            ["--mac", "52:54:00:00:00:01", "--vlan", "4096"],
            "vmq explain --vlan: 4096 is not a VLAN. Remedy: Give a number from 0 to 4095",
        ),
        (
            ["--hex", FRAME[:-1]],
            "vmq explain --hex: this is not a frame. Remedy: Give at least 14 bytes, two hexadecimal digits each",
        ),
        (
            ["--hex", FRAME[:-2]],
            "vmq explain --hex: this is not a frame. Remedy: Give at least 14 bytes, two hexadecimal digits each",
        ),
    ],
)
def test_a_wrong_question_is_not_asked(vmq, engine, words: list[str], line: str) -> None:
    """Exit 2, one line, and the engine has heard nothing."""
    assert vmq("explain", *words) == (2, "", f"{line}\n")
    assert engine.asked == []


def test_an_answer_that_is_no_decision_is_a_failure(vmq, engine) -> None:
    """Two versions that do not understand each other say so."""
    engine.answer([])

    assert vmq("explain", "--mac", "52:54:00:00:00:01")[0] == 1
