# SPDX-License-Identifier: Apache-2.0
"""Which VMs can be direct, by which tier, and how long one rests. What a tier does: test_pairs.py, test_own_queues.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.running import Running
from vmq.config import Xdp
from vmq.dataplane import state
from vmq.engine import directing as module
from vmq.uplink.tap import TapUplink
from vmq.uplink.xdp import XdpUplink


def test_a_rest_is_forgotten_when_it_was_well_for_long_or_the_vm_is_gone(running: Running) -> None:
    directing, vm = running.engine.directing, SimpleNamespace(name="a")
    pauses = []
    for _ in range(3):
        directing.rest(vm, "a test")  # type: ignore[arg-type]
        pauses.append(directing._rests["a"].pause)
    last = directing._rests["a"]
    directing._rests["a"] = replace(last, until=last.until - 2 * module.REST_MOST)
    directing.rest(vm, "a test")  # type: ignore[arg-type]
    assert [*pauses, directing._rests["a"].pause] == [1, 2, 4, 1]
    running.do(directing.look)
    assert (directing._rests, directing.whys) == ({}, {})


Spoil = tuple[Callable[[Any], None], str]
OF_ALL: list[Spoil] = [
    (lambda vm: setattr(vm.config, "placement", "switched"), "not asked for"),
    (lambda vm: vm.engine.uplinks.clear(), "not of kind xdp or tap"),
    (lambda vm: setattr(vm.queues[0], "shared", True), "no receive queue of its own"),
    (lambda vm: setattr(vm.queues[0], "former", 1), "on its way to another processor"),
    (lambda vm: setattr(vm.observed, "any", True), "captured or measured"),
    (lambda vm: vm.home.effects.entry.tests.append(1), "more than addresses"),
    (lambda vm: setattr(vm, "fault", "broken"), "does not run"),
]
OF_PAIRS: list[Spoil] = [
    (lambda vm: setattr(vm.config, "overload", "hold"), "are to wait"),
    (lambda vm: vm.config.accept.append("unknown"), "frames to other addresses"),
    (lambda vm: setattr(vm, "mtu", 9000), "MTU of 9000"),
    (lambda vm: vm.running.clear(), "must run"),
    (lambda vm: setattr(vm.uplink.steering, "mode", ""), "steers nothing"),
]
OF_OWN_QUEUES: list[Spoil] = [
    (lambda vm: setattr(vm.uplink, "several", False), "one queue only"),
    (lambda vm: setattr(vm.uplink, "shared", True), "somebody else"),
    (lambda vm: vm.running.remove(0), "does not run"),
]
CASES = [(kind, *one) for kind in ("xdp", "tap") for one in OF_ALL]
CASES += [("xdp", *one) for one in OF_PAIRS] + [("tap", *one) for one in OF_OWN_QUEUES]


def port(kind: str) -> Any:
    """A port that has nothing in its way."""
    uplink: Any
    if kind == "xdp":
        uplink = XdpUplink.__new__(XdpUplink)
        uplink.config, uplink.steering = Xdp(device="wire0"), SimpleNamespace(mode="native")
    else:
        uplink = TapUplink.__new__(TapUplink)
        uplink.several, uplink.shared = True, False
    engine: Any = SimpleNamespace(uplinks={"lan": SimpleNamespace(uplink=uplink)})
    return SimpleNamespace(
        engine=engine, name="a", mtu=1500, running=[0], fault="", observed=SimpleNamespace(any=False), uplink=uplink,
        config=SimpleNamespace(uplink="lan", placement="direct", overload="drop-newest", accept=[], vlan=None, nic_queue=None),
        queues=[SimpleNamespace(shared=False, former=state.NONE)],
        home=SimpleNamespace(effects=SimpleNamespace(entry=SimpleNamespace(tests=[]))),
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "why"), CASES, ids=[f"{kind}: {why}" for kind, _, why in CASES])
def test_each_obstacle_is_said(kind: str, spoil: Callable[[Any], None], why: str) -> None:
    vm = port(kind)
    directing = module.Directing(vm.engine)
    assert directing.obstacle(vm) == ""
    spoil(vm)
    assert why in directing.obstacle(vm)


def test_what_one_tier_cannot_do_is_nothing_to_another() -> None:
    vm = port("tap")
    for spoil, _ in OF_PAIRS[:3]:
        spoil(vm)
    vm.running.append(1)
    directing = module.Directing(vm.engine)
    assert directing.obstacle(vm) == ""
    assert directing.words(vm) == "by a queue of its own"
    vm.engine.uplinks.clear()
    assert (directing.words(vm), directing.stage(vm)) == ("", "switched")
