# SPDX-License-Identifier: Apache-2.0
"""`vmq demo --direct`: both halves as root, and that its verdict can be a bad one."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vm.lab.netns import Namespace
from vmq import demo, demo_direct, linux
from vmq.cli import main
from vmq.errors import HostError, VmqError

HOST = bytes.fromhex("0200000000fe")
GROUP = bytes.fromhex("01005e000001")
SPOILED = """
from dataclasses import replace
from vmq import demo_direct
made = demo_direct.windows
def spoil(frames, vms):
    *rest, last = made(frames, vms)
    first, *others = last.frames
    return [*rest, replace(last, frames=[first[:-1] + bytes([first[-1] ^ 1]), *others])]
demo_direct.windows = spoil
raise SystemExit(demo_direct.run(0.2, True, True))
"""


def frame(destination: bytes, number: int, size: int = 60) -> bytes:
    return (destination + HOST + b"\x08\0" + number.to_bytes(2, "big")).ljust(size, b"\0")


def own(vm: demo.Member) -> bytes:
    return bytes.fromhex(vm.macs[0].replace(":", ""))


def half(**other: Any) -> dict[str, Any]:
    """What a good direct half says."""
    good = {"placement": "direct", "to_one_vm": 1000, "led_to_pairs": 1000, "frames_placed": 1100}
    return good | {"bytes_copied": 0} | other


def test_a_round_begins_with_groups_and_no_window_is_longer_than_a_veth_holds() -> None:
    vms = demo.members()[:2]
    ours = [frame(own(vms[0]), number) for number in range(demo_direct.WINDOW + 5)]
    theirs, everybody = frame(own(vms[1]), 0), frame(GROUP, 0)
    away = frame(HOST, 0)[:6] + own(vms[0]) + bytes(48)

    made = demo_direct.windows([*ours, theirs, everybody, away], vms)

    assert [(len(one.frames), one.groups, list(one.due)) for one in made] == [
        (1, True, [1, 1]),
        (demo_direct.WINDOW, False, [demo_direct.WINDOW + 1, 1]),
        (7, False, [len(ours) + 1, 2]),
    ]
    assert vms[0].expected == [everybody, *ours]
    assert vms[1].expected == [everybody, theirs]
    assert vms[0].sends == []


def test_the_wire_takes_its_mtu_and_a_tag() -> None:
    tag = bytes.fromhex("8100000a")
    longest = frame(GROUP, 0, 1514)

    assert demo_direct.crosses(longest)
    assert demo_direct.crosses(longest[:12] + tag + longest[12:])
    assert not demo_direct.crosses(longest + b"\0")
    assert not demo_direct.crosses(longest[:12] + tag + longest[12:] + b"\0")


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        ({}, []),
        ({"led_to_pairs": 990}, []),
        ({"led_to_pairs": 989}, ["the kernel placed 989 of 1000 frames to one VM"]),
        ({"frames_placed": 989}, ["the kernel placed 989 of 1000 frames to one VM"]),
        ({"bytes_copied": 1}, ["the engine copied 1 bytes"]),
        ({"placement": "switched"}, ["the kernel placed 1100 frames"]),
        ({"placement": "switched", "frames_placed": 0, "led_to_pairs": 0, "bytes_copied": 9}, []),
    ],
)
def test_who_wrote_the_frames_is_judged(other: dict[str, Any], wrong: list[str]) -> None:
    """A hundredth may be missing, not one more; not one byte may be the engine's."""
    assert demo_direct.misplaced_frames(half(**other)) == wrong


def test_a_complaint_is_a_bad_verdict_in_words() -> None:
    row = half(
        placement="direct", rounds=1, frames=10, bytes=600, engine_ns=1.0, sender_ns=2.0, ns_a_frame=3.0
    )
    result = {"ok": True, "complaints": [], "capture_frames": 12, "too_long": 2, "placements": [row]}

    good = demo_direct.report(result)
    bad = demo_direct.report(result | {"ok": False, "complaints": ["direct: target: drops"]})

    assert good.startswith("12 frames in the capture; 2 of them are too long for the wire\n")
    assert "\nPASS: every frame reached" in good
    assert bad.endswith("\nFAIL:\n  direct: target: drops")
    assert "PASS" not in bad


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EPERM, "Run it as root"),
        (errno.EOPNOTSUPP, "CONFIG_VETH"),
        (errno.ENOMEM, "Free what"),
    ],
)
def test_what_the_host_refuses_is_said_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, remedy: str
) -> None:
    """errors.py: one line with the remedy, exit 2."""

    def refuse() -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(demo_direct, "Apart", refuse)
    monkeypatch.delattr(demo_direct, "compile_everything")

    assert main(["demo", "--direct"]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vmq demo --direct: a network of its own with AF_XDP is refused: ")
    assert os.strerror(code) in err
    assert remedy in err.partition("Remedy: ")[2]
    assert err.endswith("; vmq demo needs none of it\n")


def test_a_kernel_without_af_xdp_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that no kernel has stands for it."""
    monkeypatch.setattr(demo_direct, "Apart", lambda: SimpleNamespace(fd=-1))
    monkeypatch.setattr(linux, "setns", lambda *_: None)
    monkeypatch.setattr(demo_direct, "AF_XDP", 255)

    with pytest.raises(HostError, match="CONFIG_XDP_SOCKETS"):
        demo_direct.wire()


def test_a_vm_that_does_not_become_direct_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"of": "engine", "name": "placement", "effective": "static", "why": ""},
        {"of": "vm red", "name": "placement", "effective": "direct", "why": ""},
        {"of": "vm blue", "name": "placement", "effective": "switched", "why": "it is captured or measured"},
    ]
    one = demo_direct.Half.__new__(demo_direct.Half)
    one.placement, one.engine = "direct", None  # type: ignore[assignment]
    monkeypatch.setattr(demo_direct, "show", lambda *_: rows)
    monkeypatch.setattr(demo_direct, "PLACED_SECONDS", 0)

    with pytest.raises(VmqError, match="vm blue is switched, not direct: it is captured or measured"):
        asyncio.run(one.placed())


def run(host: Namespace, folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code of a Python that was started in a namespace, and what it printed."""
    ran = subprocess.run(
        host.command([sys.executable, *words]),
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(folder)},
    )
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout)


@pytest.mark.root
@pytest.mark.compiled
@pytest.mark.timeout(300)
def test_the_kernel_places_every_frame_and_the_engine_copies_none(tmp_path: Path) -> None:
    """Frames of a wire land in guest memory, compared by the guests; the host has no device more than before."""
    with Namespace("host") as host:
        before = host.run("ip", "-brief", "link")
        code, result = run(host, tmp_path, "-m", "vmq", "demo", "--direct", "--seconds", "2", "--json")
        assert host.run("ip", "-brief", "link") == before

    assert (code, result["ok"]) == (0, True), result["complaints"]
    assert result["complaints"] == []
    switched, direct = result["placements"]
    for one, placement in ((switched, "switched"), (direct, "direct")):
        assert one["placement"] == placement
        assert one["rounds"] > 0
        assert one["frames"] == sum(row["frames_to_guest"] for row in one["vms"])
        assert all(row["frames_to_guest"] > 0 for row in one["vms"])
    verdicts = switched["uplink"]["verdicts"], direct["uplink"]["verdicts"]
    assert (verdicts[0]["steered"], verdicts[0]["direct"]) == (switched["to_one_vm"], 0)
    assert (verdicts[1]["steered"], verdicts[1]["direct"]) == (0, direct["to_one_vm"])
    assert (switched["frames_placed"], switched["bytes_copied"]) == (0, switched["bytes"])
    assert (direct["frames_placed"], direct["bytes_copied"]) == (direct["frames"], 0)


@pytest.mark.root
@pytest.mark.compiled
@pytest.mark.timeout(300)
def test_one_bit_that_is_another_on_the_wire_is_found_in_both_halves(tmp_path: Path) -> None:
    with Namespace("host") as host:
        code, result = run(host, tmp_path, "-c", SPOILED)

    assert (code, result["ok"]) == (1, False)
    for half in result["placements"]:
        assert half["frames"] > 0
        (wrong,) = [
            vm for vm in half["vms"] if any(f"{vm['name']}: " in line for line in result["complaints"])
        ]
        assert f"{half['placement']}: {wrong['name']}: {half['rounds']} frames wrong" in result["complaints"]
