# SPDX-License-Identifier: Apache-2.0
"""A wire of one's own: what is sent arrives, at the end that it was sent to, and the host sees none of it."""

from __future__ import annotations

import errno
import gzip
import os
import platform
import socket
from contextlib import closing
from pathlib import Path

import pytest

from vmq.abi import bpf
from vmq.abi.netdevice import ETH_P_ALL
from vmq.bpf.link import Link
from vmq.speed import wire as module
from vmq.speed.wire import a_frame, a_program, counts_apart, refusal, wire

TO, SOURCE = "52:54:00:00:02:00", "52:54:00:00:02:02"


@pytest.mark.root
def test_frames_come_out_at_the_near_end_and_cost_something() -> None:
    before = set(os.listdir("/sys/class/net"))
    with wire() as one:
        assert set(os.listdir("/sys/class/net")) == before

        def listening() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.bind((one.near, ETH_P_ALL))
            made.settimeout(10)
            return made

        data = a_frame(TO, SOURCE, 100)
        with closing(one.call(listening)) as heard:
            # An end takes what is redirected into the other only while it has a program.
            with (
                a_program("pass", bpf.XDP_PASS) as upwards,
                one.call(lambda: Link(upwards, one.pair.index, flags=bpf.XDP_FLAGS_DRV_MODE)),
            ):
                assert one.call(lambda: one.send(data, 3)) > 0
                assert [heard.recv(2000) for _ in range(3)] == [data] * 3
            one.drop()
            one.call(lambda: one.send(data, 3))
            heard.setblocking(False)
            with pytest.raises(BlockingIOError):
                heard.recv(2000)
        one.close()


@pytest.mark.root
def test_a_verdict_needs_no_device() -> None:
    with a_program("drop", bpf.XDP_DROP) as program:
        assert program.run(a_frame(TO, SOURCE, 64)).verdict == bpf.XDP_DROP


def test_a_frame_is_of_its_size_and_from_somebody_to_somebody() -> None:
    data = a_frame(TO, SOURCE, 64)
    assert (len(data), data[:6].hex(":"), data[6:12].hex(":")) == (64, TO, SOURCE)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.EPERM, "Run it as root"), (errno.EINVAL, "Linux 5.18"), (errno.ENOMEM, "Free what")],
)
def test_what_is_refused_has_a_remedy(code: int, remedy: str) -> None:
    found = refusal("vmq bench", "it is refused", OSError(code, os.strerror(code)), "; or not")
    assert found.wrong == f"it is refused: {os.strerror(code)}"
    assert remedy in found.remedy
    assert found.remedy.endswith("; or not")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("config", "cmdline", "apart"),
    [
        ("CONFIG_IRQ_TIME_ACCOUNTING=y", "quiet", True),
        ("CONFIG_IRQ_TIME_ACCOUNTING=y", "quiet tsc=noirqtime", False),
        ("# CONFIG_IRQ_TIME_ACCOUNTING is not set", "", False),
        (None, "", False),
    ],
)
def test_a_kernel_that_counts_softirqs_apart_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zipped: bool,
    config: str | None,
    cmdline: str,
    apart: bool,
) -> None:
    for folder in ("proc", "boot"):
        (tmp_path / folder).mkdir()
    (tmp_path / "proc/cmdline").write_text(cmdline)
    if config and zipped:
        (tmp_path / "proc/config.gz").write_bytes(gzip.compress(config.encode()))
    elif config:
        (tmp_path / f"boot/config-{platform.release()}").write_text(config)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert counts_apart() is apart
