# SPDX-License-Identifier: Apache-2.0
"""Either side goes and comes again, in either direction of the socket: traffic resumes, and nothing is left behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.vm.lab import recipes
from tests.vm.lab.qemu import Guest
from tests.vm.lab.site import Site, site

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(200)]
PORT = 7001
CHUNK = 1 << 16
STEP = 1 << 18  # bytes of a stream between two kills


def test_engine_that_connects_finds_its_front_end_again(tmp_path: Path) -> None:
    """QEMU listens. The engine is killed and started, then QEMU: whoever is there is found without a hand."""
    with site(tmp_path, {"a": 'mode = "connect"'}) as here:
        assert here.row("a")["state"] == "connecting"
        nic = here.nic("a", server=True)
        with here.guest("a", nic) as guest:
            guest.ready()
            assert here.ping("a") == 3
            here.crash()
            here.await_ping("a")
            here.upload(guest, 2)
        here.engine.wait_for("a", "connecting")
        with here.guest("a", nic) as guest:
            guest.ready()
            here.await_ping("a")
            here.upload(guest, 2)
            assert here.row("a")["connects"] == 2
            assert here.row("a")["last_error"] is None


@pytest.mark.parametrize("times", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_guest_that_is_killed_and_started_again_gets_its_traffic_back(tmp_path: Path, times: int) -> None:
    """SIGKILL to QEMU, the same socket; descriptors and mappings are those of the first time."""
    with site(tmp_path) as here:
        held = here.holdings()
        first = None
        for number in range(times + 1):
            with here.guest("a") as guest:
                guest.ready()
                here.await_ping("a")
                assert here.row("a")["connects"] == number + 1
                first = first or here.holdings()
                assert here.holdings() == first
                assert first.mappings > 0
            here.engine.wait_for("a", "listening")
        assert here.holdings() == held
        assert here.row("a")["last_error"] is None


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_guest_that_reboots_keeps_its_connection_and_gets_its_traffic_back(
    tmp_path: Path, times: int
) -> None:
    """By its own `reboot`, then by the reset button: the driver starts at index 0 in memory that was used before."""
    with site(tmp_path) as here, here.guest("a") as guest:
        guest.ready()
        here.await_ping("a")
        held = here.holdings()
        for _ in range(times):
            for how in (
                lambda: guest.start("sleep 0.1; reboot -f"),
                lambda: guest.qmp.execute("system_reset"),
            ):
                guest.reboot(how)
                here.await_ping("a")
        here.upload(guest, 2)
        assert here.holdings() == held
        assert here.row("a")["connects"] == 1
        assert here.row("a")["last_error"] is None


def start_stream(a: Guest, b: Guest, address: str) -> None:
    """One TCP connection from b to a, paced, that ends when the file /run/stop appears."""
    a_job = recipes.receive_stream(a, PORT)
    assert a_job.output == ""
    b.run(f"dd if=/dev/urandom of=/run/chunk bs={CHUNK} count=1")
    b.start(
        f"while [ ! -e /run/stop ]; do cat /run/chunk; echo >>/run/sent; usleep 50000; done | nc {address} {PORT}"
    )


def await_stream(here: Site, a: Guest, size: int, seconds: float = 60.0) -> int:
    """Wait until so many bytes have come."""
    deadline = time.monotonic() + seconds
    while (got := recipes.received(a)) < size:
        assert time.monotonic() < deadline, f"stuck at {got} of {size}: {here.row('a')}\n{here.engine.log}"
        time.sleep(0.05)
    return got


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_tcp_stream_between_guests_survives_crashes_of_the_engine(tmp_path: Path, times: int) -> None:
    """kill -9 and a new start, again and again, in the middle of one connection: every byte arrives, once."""
    with site(tmp_path) as here, here.guest("a") as a, here.guest("b") as b:
        a.ready()
        b.ready()
        start_stream(a, b, here.address("a"))
        got = await_stream(here, a, STEP)
        for _ in range(times):
            here.crash()
            got = await_stream(here, a, got + STEP)
        b.run("touch /run/stop")
        chunks = int(b.run("sleep 0.2; wc -l </run/sent"))
        await_stream(here, a, chunks * CHUNK)

        expected = b.run(f"for i in $(seq {chunks}); do cat /run/chunk; done | md5sum").split()[0]
        assert recipes.received(a) == chunks * CHUNK
        assert recipes.md5(a, "/run/received") == expected
        assert [here.row(name)["connects"] for name in ("a", "b")] == [1, 1], "each engine is asked once"
