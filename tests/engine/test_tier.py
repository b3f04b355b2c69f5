# SPDX-License-Identifier: Apache-2.0
"""What tiers share; what each does: test_pairs.py, test_own_queues.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vmq.engine import tier


def test_a_moment_is_waited_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier, "PASS_SECONDS", 0.01)
    turns = iter([False, False, True])
    assert tier.soon(lambda: next(turns))
    assert not tier.soon(lambda: False)


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
