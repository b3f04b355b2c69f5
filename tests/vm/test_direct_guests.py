# SPDX-License-Identifier: Apache-2.0
"""Two engines joined by a wire, real guests whose frames the kernel places: what they say arrives, and was placed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.vm.lab import recipes
from tests.vm.lab.wire import MACS, XDP, Wire, wire

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(300)]
PATIENCE = 60
PLACED = 0.99  # of the unicast frames from the wire


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with wire(tmp_path_factory.mktemp("wire"), XDP, "direct") as ready:
        deadline = time.monotonic() + PATIENCE
        while any("direct" not in one for one in placements(ready)):
            assert time.monotonic() < deadline, placements(ready)
            time.sleep(0.1)
        yield ready


def placements(it: Wire) -> list[str]:
    """Of all VM ports: the effective one, and why."""
    rows = [row for engine in it.engines.values() for row in engine.ask("show", what="settings")]
    return [
        f"{row['effective']} {row['why']}"
        for row in rows
        if row["of"][:3] == "vm " and row["name"] == "placement"
    ]


def verdicts(it: Wire) -> tuple[int, int]:
    """Unicast frames for guests that the kernel placed, and that the engine did."""
    found = [engine.show("uplinks")["wire"]["verdicts"] for engine in it.engines.values()]
    return sum(one["direct"] for one in found), sum(one["steered"] for one in found)


def copied(it: Wire) -> int:
    """Bytes that the engines wrote into their guests' memory."""
    return sum(row["bytes_copied"] for one in it.engines.values() for row in one.show("vms").values())


def test_tcp_arrives_intact_and_the_kernel_places_it(it: Wire) -> None:
    """16 MiB each way, untagged and in a VLAN; a driver whose buffers take a frame each."""
    before, written = verdicts(it), copied(it)
    total = recipes.make_file(it.a, "/srv/page", 16)
    recipes.serve_http(it.a)

    assert recipes.fetch(it.b, "http://10.0.0.1/page") == total
    assert recipes.fetch(it.b, "http://10.1.0.1/page") == total
    direct, switched = (now - then for now, then in zip(verdicts(it), before, strict=True))
    assert direct > 20_000
    assert direct >= PLACED * (direct + switched)
    assert copied(it) == written
    rows = [row for engine in it.engines.values() for row in engine.show("queues").values()]
    assert (
        sum(row["drops"].get(name, 0) for row in rows for name in ("to_guest_pair", "to_guest_too_long")) == 0
    )


def test_iscsi_verifies_a_lun(it: Wire) -> None:
    """The other way round: each recipe waits for the first disk of its guest."""
    recipes.iscsi_target(it.b, "10.0.0.2")
    recipes.iscsi_login(it.a, "10.0.0.2")
    recipes.verify_disk(it.a)


def test_fcoe_verifies_a_lun(it: Wire) -> None:
    """It learns addresses while the queue is led, and begins with multicasts."""
    recipes.fcoe_target(it.a, MACS["b"][0])
    recipes.fcoe_login(it.b)
    recipes.verify_disk(it.b)
    filters = it.engines["b"].show("filters")
    assert any(mac.startswith("0e:fd:00") and row["source"] == "learned" for mac, row in filters.items())
    assert all(one.startswith("direct") for one in placements(it))
