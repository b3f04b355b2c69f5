# SPDX-License-Identifier: Apache-2.0
"""Each core has the filters and receive queues that its line names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import cost
from bench.core import Core
from vmq.dataplane import state
from vmq.jit import at


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few frames and buffers: nothing is measured here."""
    monkeypatch.setattr(cost, "COUNT", dict.fromkeys(cost.COUNT, 1024))
    monkeypatch.setattr(cost, "BUFFERS", dict.fromkeys(cost.BUFFERS, 64))


def tables(core: Core) -> Any:
    return at(int(core.segment.engine["tables"]), 1, state.tables)[0]


@pytest.mark.parametrize(("uplink", "own"), [(0, 5), (1, 0)])
def test_generic_filters_stand_where_the_line_says(uplink: int, own: int) -> None:
    with cost.with_filters(3, 5, uplink) as core:
        t = tables(core)
        rules = at(int(t["rules"]), int(t["rule_count"]), state.rule)
        assert [int(row["count"]) for row in rules[1:]] == [own, 5][: 1 + uplink]
        assert int(t["vport_count"]) == 1


def test_without_generic_filters_there_are_no_rules() -> None:
    with cost.with_filters(3) as core:
        assert int(tables(core)["rule_count"]) == 0


def test_guests_in_segments_leave_a_burst_its_length_and_all_in_one_shorten_it() -> None:
    with cost.with_queues(512, 64) as apart, cost.with_queues(512, 512) as together:
        assert tables(apart)["frame_limit"] >= state.BURST > tables(together)["frame_limit"]
        assert int(tables(apart)["queue_count"]) == 512


@pytest.mark.parametrize("shared", [False, True])
def test_a_default_queue_is_one_that_its_guests_share(shared: bool) -> None:
    with cost.with_guests(64, 4, shared) as core:
        rows = at(int(tables(core)["queues"]), 4, state.queue)
        assert rows["shared"].tolist() == [shared] * 4


def test_flows_differ_in_their_addresses_and_not_in_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "FLOW_COUNT", 1024)
    seen = {}
    for flows in (1, 512):
        with cost.with_flows(flows) as core:
            rows = core.played.rows
            frames = [at(int(row["address"]), 64, np.uint8).tobytes() for row in rows]
            seen[flows] = {frame[26:38] for frame in frames}
            assert len({frame[:6] for frame in frames}) == cost.FLOW_QUEUES
            assert len(rows) == 1024
    assert [len(found) for found in seen.values()] == [1, 512]
