# SPDX-License-Identifier: Apache-2.0
"""A running engine for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.running import Running


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """An engine with one processor, empty."""
    with Running(tmp_path) as one:
        yield one
