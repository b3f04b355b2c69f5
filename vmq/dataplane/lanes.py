# SPDX-License-Identifier: Apache-2.0
"""An uplink lane, whatever its kind: `rx_burst` fills a round, `tx_burst` sends what leaves. One test a burst."""

from __future__ import annotations

from typing import Any

from vmq.dataplane.packet import packet_receive, packet_transmit
from vmq.dataplane.replay import replay_receive, replay_transmit
from vmq.dataplane.state import FRAMES, LANE_PACKET, LANE_REPLAY, LANE_TAP, LANE_XDP, NONE, frame
from vmq.dataplane.tap import tap_receive, tap_transmit
from vmq.dataplane.xdp import xdp_receive, xdp_transmit
from vmq.jit import at, int64, kernel


@kernel
def rx_burst(t: Any, w: Any, lane: Any, state: Any, books: int) -> int:
    """Frames from the wire into w["frames"] (w["frame_count"] of them); whether there was anything."""
    taken = int64(0)
    if lane["kind"] == LANE_TAP:
        taken = tap_receive(t, w, lane, state, int64(lane["fd"]))
    elif lane["kind"] == LANE_PACKET:
        taken = packet_receive(t, w, lane, state)
    elif lane["kind"] == LANE_XDP:
        taken = xdp_receive(t, w, lane, state)
    elif lane["kind"] == LANE_REPLAY:
        taken = replay_receive(t, w, lane, state)
        state["frames_from_wire"] += taken
    sign(w, lane, books)
    return taken


@kernel
def own_burst(t: Any, w: Any, lane: Any, state: Any, books: int, descriptor: int) -> int:
    """The same from a VM's own queue of a TAP, by the lane of this worker."""
    taken = tap_receive(t, w, lane, state, descriptor)
    sign(w, lane, books)
    return taken


@kernel
def sign(w: Any, lane: Any, books: int) -> None:
    """Say of the frames of a round where they come from."""
    frames = at(w["frames"], FRAMES, frame)
    for index in range(w["frame_count"]):
        frames[index]["account"] = books
        frames[index]["source"] = NONE
        frames[index]["uplink"] = lane["uplink"]


@kernel
def tx_burst(w: Any, lane: Any, state: Any) -> None:
    """Send the frames numbered in w["outgoing"]."""
    if lane["kind"] == LANE_TAP:
        tap_transmit(w, lane, state)
    elif lane["kind"] == LANE_PACKET:
        packet_transmit(w, lane, state)
    elif lane["kind"] == LANE_XDP:
        xdp_transmit(w, lane, state)
    elif lane["kind"] == LANE_REPLAY:
        replay_transmit(w, lane, state)
