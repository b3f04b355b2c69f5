# SPDX-License-Identifier: Apache-2.0
"""The host's end of an engine's TAP, in a namespace that says nothing of its own: frames in, frames out.

    with wired(folder, {"a": A}) as (engine, wire):
        wire.send(frames)
        assert wire.receive(len(frames)) == frames

A TAP is a live wire: what the engine does not take in time is lost in the kernel. So `send` follows the engine's
own count of frames from the wire, and never has more on the way than the TAP holds.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.dpdk.lab import until
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.netns import Namespace

TAP, HOST = "vmqtap0", "02:00:00:00:00:fe"
SOL_PACKET, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 263, 23, 3  # linux/if_packet.h, linux/if_ether.h
ON_THE_WAY = 64
CPU = 1  # the engine's processor; front-ends have the other


class Wire:
    """A packet socket at the host's end."""

    def __init__(self, engine: EngineProcess, host: Namespace) -> None:
        self.engine = engine
        self._socket = host.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._socket.bind((TAP, ETH_P_ALL))

    def _taken(self) -> int:
        return int(self.engine.show("uplinks")["lan"]["frames_from_wire"])

    def _wait_taken(self, goal: int) -> None:
        until(lambda: self._taken() >= goal, f"the engine takes {goal} frames from the wire", 10)

    def send(self, frames: Sequence[bytes]) -> None:
        """Send frames into the engine; it has taken them all."""
        goal = self._taken()
        for first in range(0, len(frames), ON_THE_WAY):
            burst = frames[first : first + ON_THE_WAY]
            goal += len(burst)
            for one in burst:
                self._socket.send(one)
            self._wait_taken(goal)
        assert self._taken() == goal, "somebody else speaks on the wire"

    def receive(self, count: int, timeout: float = 5.0) -> list[bytes]:
        """The next `count` frames that left the engine, fewer if no more come in time."""
        found: list[bytes] = []
        deadline = time.monotonic() + timeout
        while len(found) < count and (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                found.append(self._socket.recv(1 << 16))
        return found

    def close(self) -> None:
        self._socket.close()


def ports(
    vms: Mapping[str, str], *, uplink: str = "", mode: str = "listen", vlans: Mapping[str, int] | None = None
) -> str:
    """VM ports of a configuration, name by MAC."""
    text = ""
    for name, mac in vms.items():
        text += f'[vm.{name}]\nsocket = "{{folder}}/{name}.sock"\nmac = "{mac}"\nmode = "{mode}"\n'
        text += f'uplink = "{uplink}"\n' if uplink else ""
        text += f"vlan = {vlans[name]}\n" if vlans else ""
    return text


def engine_text(body: str) -> str:
    """A configuration whose engine runs on CPU."""
    return f'[engine]\napi = "{{folder}}/api.sock"\nprocessors = "{CPU}"\n{body}'


@contextlib.contextmanager
def switched(folder: Path, vms: Mapping[str, str], *, mode: str = "listen") -> Iterator[EngineProcess]:
    """An engine whose VMs have each other and no uplink."""
    with EngineProcess(folder, engine_text(ports(vms, mode=mode))) as engine:
        yield engine


@contextlib.contextmanager
def wired(
    folder: Path, vms: Mapping[str, str], vlans: Mapping[str, int] | None = None
) -> Iterator[tuple[EngineProcess, Wire]]:
    """An engine on a TAP, and the wire at its other end."""
    body = f'[uplink.lan]\nkind = "tap"\ndevice = "{TAP}"\n' + ports(vms, uplink="lan", vlans=vlans)
    with Namespace("wire") as host:
        for scope in ("default", "all"):
            host.sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 1)
        with EngineProcess(folder, engine_text(body), host) as engine:
            wire = Wire(engine, host)
            try:
                yield engine, wire
            finally:
                wire.close()
