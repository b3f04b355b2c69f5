# SPDX-License-Identifier: Apache-2.0
"""The front-end listens and the engine connects: either may be killed and started again, and traffic resumes
(L3.1, L3.2).

Frames are as long as the MTU allows; some lie in chains of three buffers. The counting and comparing go across the
kills: what was sent before one and not yet taken is delivered after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dpdk.frames import difference, mac_bytes, read_capture, series, write_capture
from tests.dpdk.lab import PATHS, Testpmd, pcap, until, virtio_user
from tests.dpdk.pair import PORT, VMS, A, B
from tests.dpdk.wire import CPU, engine_text, ports
from tests.vm.lab.engine import EngineProcess

pytestmark = [pytest.mark.dpdk, pytest.mark.root, pytest.mark.timeout(180)]

LONGEST, BURST, BURSTS, ROUND, LEAST, CYCLES = 1514, 32, 2, 64, 1000, 3
CHAINS = ("set txpkts 500,500,514", f"set burst {BURST}")
IPV4 = b"\x08\x00"  # what testpmd makes itself; the frames of the captures are of another type


class Listening:
    """Two listening front-ends in one process: each sends a capture round and round, and keeps what it gets."""

    def __init__(self, folder: Path, ring: str) -> None:
        self.folder, self.talks, self.restarted = folder, 0, False
        devices = []
        self.frames = {
            "a": series(B, A, ROUND, (LONGEST,)),
            "b": series(A, B, ROUND, (LONGEST,), first=ROUND),
        }
        for number, (name, mac) in enumerate(VMS.items()):
            (folder / f"{name}.sock").unlink(
                missing_ok=True
            )  # one that was killed leaves its file, and refuses it
            source = write_capture(folder / f"{name}.in", self.frames[name])
            devices.append(virtio_user(number, folder / f"{name}.sock", mac, ring, server=True))
            devices.append(pcap(number, source, folder / f"{name}.out", endless=True))
        peers = (f"--eth-peer={PORT['a']},{B}", f"--eth-peer={PORT['b']},{A}")
        self.pmd = Testpmd(folder, devices, options=peers)

    def talk(self, engine: EngineProcess) -> None:
        """Each sends some chains and many frames of its capture; the engine has delivered all that was sent."""
        before = {name: self.pmd.received(port) for name, port in PORT.items()}
        self.pmd.say(
            "set fwd io retry", "set burst tx delay 20 retry 100000", *CHAINS, f"start tx_first {BURSTS}"
        )
        for name, port in PORT.items():
            self.pmd.wait_received(port, before[name] + LEAST)
        self.pmd.say("stop")
        self.talks += 1
        # A processor sleeps when no ring holds anything for it.
        until(
            lambda: engine.show("processors")[str(CPU)]["state"] == "sleeping",
            "all that was sent is delivered",
        )

    def restart_ports(self) -> None:
        """Stop and start every port: the files of what arrived begin anew."""
        self.pmd.say("port stop all", "port start all")
        self.talks, self.restarted = 0, True

    def quit_and_compare(self) -> None:
        """The capture of each arrived at the other without a gap, byte for byte; chains whole."""
        self.pmd.quit()
        for name, sender in (("a", "b"), ("b", "a")):
            got = [
                one for one in read_capture(self.folder / f"{name}.out") if one[:6] == mac_bytes(VMS[name])
            ]
            chains = [one for one in got if one[12:14] == IPV4]
            assert [len(one) for one in chains] == [LONGEST] * (self.talks * BURST * BURSTS)
            assert len({one[:42] for one in chains}) == 1, "the headers of the chains differ"
            rest = [one for one in got if one[12:14] != IPV4]
            first = self.frames[sender].index(rest[0])
            assert first == 0 or self.restarted
            rounds = self.frames[sender] * (len(rest) // ROUND + 2)
            assert not difference(rest, rounds[first:][: len(rest)])
            assert len(rest) >= self.talks * LEAST - len(chains)


@contextmanager
def connecting(folder: Path) -> Iterator[EngineProcess]:
    with EngineProcess(folder, engine_text(ports(VMS, mode="connect"))) as engine:
        yield engine


def features(engine: EngineProcess) -> dict[str, list[str]]:
    return {name: engine.wait_for(name, "running")["features"] for name in VMS}


def links(pmd: Testpmd) -> set[bool]:
    return {pmd.link(port) for port in PORT.values()}


@pytest.mark.parametrize("ring", PATHS)
def test_engine_is_killed_and_started_again(tmp_path: Path, ring: str) -> None:
    """The front-end's link goes down and comes up; the same features, the same traffic."""
    guests = Listening(tmp_path, ring)
    guests.pmd.launch()
    try:
        with connecting(tmp_path) as engine:
            guests.pmd.ready()
            agreed = features(engine)
            guests.talk(engine)
            for _ in range(CYCLES):
                engine.kill()
                until(lambda: links(guests.pmd) == {False}, "the links go down")
                engine.start()
                until(lambda: links(guests.pmd) == {True}, "the links come up")
                assert features(engine) == agreed
                guests.talk(engine)
            guests.quit_and_compare()
    finally:
        guests.pmd.__exit__()


@pytest.mark.parametrize("ring", PATHS)
def test_front_end_is_killed_and_started_again(tmp_path: Path, ring: str) -> None:
    """The VM ports go on connecting, find the new front-end, and agree on the same features."""
    with connecting(tmp_path) as engine:
        agreed = None
        for lap in range(CYCLES):
            guests = Listening(tmp_path, ring)
            with guests.pmd:
                agreed = agreed or features(engine)
                assert features(engine) == agreed
                guests.talk(engine)
                if lap == CYCLES - 1:
                    guests.quit_and_compare()
                else:
                    guests.pmd.kill()
            for name in VMS:
                engine.wait_for(name, "connecting")


def test_port_of_a_front_end_that_listens_is_stopped_and_started(tmp_path: Path) -> None:
    """After a reconnect of each side, the port's own restart still works."""
    guests = Listening(tmp_path, "mergeable")
    guests.pmd.launch()
    try:
        with connecting(tmp_path) as engine:
            guests.pmd.ready()
            features(engine)
            engine.kill()
            engine.start()
            features(engine)
            for _ in range(CYCLES):
                guests.restart_ports()
                guests.talk(engine)
            guests.quit_and_compare()
    finally:
        guests.pmd.__exit__()
