# SPDX-License-Identifier: Apache-2.0
"""One engine process a module: no attack in it may kill it. Each test is one attack."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.hostile.arena import Arena, Attack


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with Arena(Path(tmp_path_factory.mktemp("arena"))) as one:
        yield one
        one.alive()
        one.quiet()


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[PASSED] = report.passed
    return report


@pytest.fixture
def attack(arena: Arena, request: pytest.FixtureRequest) -> Iterator[Attack]:
    one = Attack(arena)
    try:
        yield one
        if request.node.stash[PASSED]:
            one.aftermath()
    finally:
        one.close()
    if request.node.stash[PASSED]:
        one.recovered()
