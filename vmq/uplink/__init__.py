# SPDX-License-Identifier: Apache-2.0
"""The wire's side in plain Python: open an uplink of any kind, tell what it is, close it.

        base.Uplink ─┬─ device.DeviceUplink ─┬─ tap.TapUplink
                     │                       └─ packet.PacketUplink ── xdp.XdpUplink
                     └─ replay.ReplayUplink ─┬─ pcap.PcapUplink
                                             └─ memory.MemoryUplink

What carries frames is in dataplane/{lanes,tap,packet,xdp,replay}.py; here are the descriptors and the memory they use.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmq.config.records import AnyUplink, Memory, Packet, Pcap, Tap, Xdp
from vmq.uplink.base import Uplink
from vmq.uplink.memory import MemoryUplink
from vmq.uplink.packet import PacketUplink
from vmq.uplink.pcap import PcapUplink
from vmq.uplink.tap import TapUplink
from vmq.uplink.xdp import XdpUplink

__all__ = ["Uplink", "open_uplink"]


def open_uplink(
    name: str, config: AnyUplink, worker_count: int, targets: Sequence[tuple[int, int]] = ()
) -> Uplink:
    """Open the uplink of a configuration with a lane for each worker; ConfigError or HostError, and nothing left.

    `targets`, (MAC, VLAN id) of the receive filters, are whom a memory uplink sends to.
    """
    if isinstance(config, Tap):
        return TapUplink(name, config, worker_count)
    if isinstance(config, Xdp):  # a Packet, too
        return XdpUplink(name, config, worker_count)
    if isinstance(config, Packet):
        return PacketUplink(name, config, worker_count)
    if isinstance(config, Pcap):
        return PcapUplink(name, config, worker_count)
    if isinstance(config, Memory):
        return MemoryUplink(name, config, worker_count, targets)
    raise TypeError(f"no uplink is made of {type(config).__name__}")
