# SPDX-License-Identifier: Apache-2.0
"""What tiers share; what each does: test_pairs.py, test_own_queues.py."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from vmq.engine import tier


def test_a_moment_is_waited_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier, "PASS_SECONDS", 0.01)
    turns = iter([False, False, True])
    assert tier.soon(lambda: next(turns))
    assert not tier.soon(lambda: False)


@dataclass(eq=False)
class Port:
    """As much of a VM as counts here."""

    uplink: str
    first_queue: int
    keys: tuple[tuple[int, int], ...]

    @property
    def config(self) -> Port:
        return self


def test_a_key_leads_to_one_vm_alone_as_the_tables_have_it() -> None:
    """A filter of its own comes before those of VMs; of VMs the first; another uplink is another segment."""
    one, two = Port("lan", 0, ((1, 0), (2, 0), (3, 0), (4, 0))), Port("lan", 1, ((2, 0), (3, 0), (3, 5)))
    far = Port("wan", 2, ((1, 0),))
    plain = {"lan": {(3, 0): 1, (4, 0): 7}, "wan": {}}
    queues = {
        name: SimpleNamespace(effects=SimpleNamespace(entry=SimpleNamespace(plain=own)))
        for name, own in plain.items()
    }
    engine: Any = SimpleNamespace(queues=queues, vms={"one": one, "two": two, "far": far})
    found: Any = tier.keys_led(engine)
    assert found == {one: {(1, 0), (2, 0)}, two: {(3, 0), (3, 5)}, far: {(1, 0)}}


def test_a_vm_without_an_uplink_or_with_one_that_is_missing_has_none() -> None:
    lan: Any = object()
    opened = SimpleNamespace(uplink=lan)
    vm: Any = SimpleNamespace(
        engine=SimpleNamespace(uplinks={"lan": opened}), config=SimpleNamespace(uplink="lan")
    )
    assert tier.uplink_of(vm) is lan
    for name in (None, "gone"):
        vm.config.uplink = name
        assert tier.uplink_of(vm) is None
