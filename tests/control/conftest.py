# SPDX-License-Identifier: Apache-2.0
"""A server of the API without an engine, and a connection to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.control.serving import Client, Serving


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving() as one:
        yield one


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    with serving.client() as one:
        yield one
