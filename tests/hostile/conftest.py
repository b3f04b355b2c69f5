# SPDX-License-Identifier: Apache-2.0
"""One engine process a module: no attack in it may kill it. Each test is one attack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.arena import Arena, Attack


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with Arena(Path(tmp_path_factory.mktemp("arena"))) as one:
        yield one
        one.alive()
        one.quiet()


@pytest.fixture
def attack(arena: Arena) -> Iterator[Attack]:
    with Attack(arena) as one:
        yield one
