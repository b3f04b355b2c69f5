# SPDX-License-Identifier: Apache-2.0
"""The guest as a process: what it says, when it ends, with which code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.guest.conftest import MAC
from vmq.guest.frames import write_frames

OWN = bytes.fromhex(MAC.replace(":", ""))
FRAMES = [OWN + bytes([number]) * 60 for number in range(10)]


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", "-m", "vmq.guest", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        try:
            yield one
        finally:
            if one.poll() is None:
                one.kill()


def until(one: subprocess.Popen[str], event: str) -> dict[str, Any]:
    assert one.stdout
    for line in one.stdout:
        said = json.loads(line)
        if said["event"] == event:
            return dict(said)
    raise AssertionError(f"the guest never said {event}")


def say(one: subprocess.Popen[str], text: str) -> None:
    assert one.stdin
    one.stdin.write(text)
    one.stdin.flush()


@pytest.fixture
def files(tmp_path):
    write_frames(tmp_path / "frames", FRAMES)
    return str(tmp_path / "frames")


def test_guest_verifies_sends_when_told_and_ends_when_told(backend, files):
    options = ["--expect", files, "--send", files, "--limit", "4", "--hold"]
    with process("--socket", backend.path, "--mac", MAC, *options) as one:
        until(one, "ready")
        backend.deliver(*FRAMES)
        while until(one, "counters")["verified"] < 10:
            pass
        assert backend.collect() == []
        say(one, "se")
        say(one, "nd\n")
        while until(one, "counters")["sent"] < 4:
            pass
        assert [frame[12:] for frame in backend.collect()] == FRAMES[:4]
        say(one, "stop\n")
        end = until(one, "end")
        assert one.wait(10) == 0
    assert (end["reason"], end["verified"], end["sent"]) == ("stop", 10, 4)


def test_guest_counts_when_told(backend, files):
    """As often as it is told: in less time than it takes to count so often by itself."""
    with process("--socket", backend.path, "--mac", MAC) as one:
        until(one, "ready")
        say(one, "count\n" * 300 + "stop\n")
        assert one.stdout
        told = [json.loads(line)["event"] for line in one.stdout]
        assert one.wait(10) == 0
    assert told[-1] == "end"
    assert told.count("counters") >= 300


@pytest.mark.parametrize("how", ["end", "signal", "seconds"])
def test_guest_ends(backend, how):
    options = ["--seconds", "0.3"] if how == "seconds" else []
    with process("--socket", backend.path, "--mac", MAC, *options) as one:
        until(one, "ready")
        if how == "end":
            assert one.stdin
            one.stdin.close()
        if how == "signal":
            one.send_signal(signal.SIGTERM)
        assert until(one, "end")["reason"] == how
        assert one.wait(10) == 0


def test_guest_whose_back_end_hangs_up_fails(backend):
    with process("--socket", backend.path, "--mac", MAC) as one:
        until(one, "ready")
        backend.hang_up()
        assert until(one, "end")["reason"] == "disconnected"
        assert one.wait(10) == 1


def test_unreadable_file_is_said_in_one_line(backend, tmp_path):
    with process("--socket", backend.path, "--mac", MAC, "--expect", str(tmp_path / "none")) as one:
        assert "none" in until(one, "failed")["error"]
        assert one.wait(10) == 1


@pytest.mark.parametrize(
    "arguments", [[], ["--socket", "s", "--mac", "52:54"], ["--socket", "s", "--mac", MAC, "--vlan", "4095"]]
)
def test_wrong_arguments_exit_2(arguments):
    from vmq.guest.__main__ import main

    assert main(arguments) == 2


def test_compile_only_compiles_and_exits():
    started = time.monotonic()
    with process("--compile-only") as one:
        assert one.wait(60) == 0
    assert time.monotonic() - started < 60
