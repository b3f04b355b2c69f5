# SPDX-License-Identifier: Apache-2.0
"""An uplink is opened by its configuration. Kinds that need root: test_tap.py, test_packet.py."""

from __future__ import annotations

import pytest

from vmq.config.records import Memory, Pcap
from vmq.uplink import open_uplink


@pytest.mark.parametrize("config", [Memory(count=1), Pcap()])
def test_a_configuration_opens_its_kind_with_a_lane_for_each_worker(config: Memory | Pcap) -> None:
    uplink = open_uplink("a", config, 3, [(2, 0)])

    assert (uplink.name, uplink.kind, uplink.status()["kind"]) == ("a", config.kind, config.kind)
    assert [int(row["worker"]) for row in uplink.lanes] == [0, 1, 2]
    uplink.follow({(2, 0)})
    uplink.send(bytes(60))
    uplink.tick()
    uplink.close()
    uplink.close()
    assert uplink.descriptors() == [None] * 3


def test_what_is_no_configuration_is_our_own_fault() -> None:
    with pytest.raises(TypeError, match="no uplink is made of int"):
        open_uplink("a", 7, 1)  # type: ignore[arg-type]
