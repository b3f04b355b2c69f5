# SPDX-License-Identifier: Apache-2.0
"""Configurations for property tests: few names, sockets and addresses, so that they clash across two of them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from tests.engine.running import FIRST_CPU, MACS
from vmq.config import Config, Memory, Vm
from vmq.engine.plan import claims

NAMES = ("a", "b", "c", "d")
UPLINKS = ("lan", "wan")


@st.composite
def configs(draw: st.DrawFn, folder: Path) -> Config:
    """A configuration that the reader would pass: within one, nothing is there twice."""
    uplinks = {
        name: Memory(
            count=0,
            mtu=draw(st.sampled_from((1400, 1500))),
            processors=draw(st.sampled_from((None, (FIRST_CPU,)))),
        )
        for name in draw(st.sets(st.sampled_from(UPLINKS)))
    }
    vms: dict[str, Vm] = {}
    taken: set[tuple[object, ...]] = set()
    for name in draw(st.permutations(NAMES))[: draw(st.integers(0, 4))]:
        vm = Vm(
            socket=str(folder / f"{draw(st.sampled_from(NAMES))}.sock"),
            uplink=draw(st.sampled_from((None, *uplinks))),
            mac=tuple(draw(st.lists(st.sampled_from(MACS[:4]), min_size=1, max_size=2, unique=True))),
            vlan=draw(st.sampled_from((None, 10))),
            queue_pairs=draw(st.sampled_from((1, 2))),
            spoof_check=draw(st.booleans()),
            accept=draw(st.sampled_from(((), ("broadcast", "multicast"), ("multicast", "unknown")))),
        )
        if not claims(vm) & taken:
            taken |= claims(vm)
            vms[name] = vm
    return Config(uplinks=uplinks, vms=vms)
