# SPDX-License-Identifier: Apache-2.0
"""A back-end double, and a guest connected to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.guest.backend import Backend
from vmq.guest.guest import Guest

MAC = "52:54:00:00:00:01"


@pytest.fixture
def backend(tmp_path) -> Iterator[Backend]:
    with Backend(str(tmp_path / "s")) as one:
        yield one


@pytest.fixture
def make_guest(backend) -> Iterator[Callable[..., Guest]]:
    """Guests at the back-end, started; closed at the end of the test."""
    with ExitStack() as stack:

        def make(**options: Any) -> Guest:
            return stack.enter_context(Guest(backend.path, MAC, **options))

        yield make
