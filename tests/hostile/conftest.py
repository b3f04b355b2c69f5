# SPDX-License-Identifier: Apache-2.0
"""One engine process a module: no attack in it may kill it. Each test is one attack."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.hostile.arena import Arena
from tests.hostile.attack import Attack, connected
from vmq.guest.frontend import Frontend


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
def attack_on(arena: Arena, request: pytest.FixtureRequest) -> Iterator[Callable[[str, str], Attack]]:
    """Attacks from a VM port, with a peer in its segment, and all that must hold after each of them."""
    attacks: list[Attack] = []

    def begin(name: str, partner: str) -> Attack:
        attacks.append(Attack(arena, name, partner))
        return attacks[-1]

    try:
        yield begin
        if request.node.stash[PASSED]:
            for one in attacks:
                one.aftermath()
            for one in attacks:
                one.recovered()
    finally:
        for one in attacks:
            one.close()


@pytest.fixture
def attack(attack_on: Callable[[str, str], Attack]) -> Attack:
    return attack_on("attacker", "peer")


@pytest.fixture(params=["fresh", "running"])
def front(request: pytest.FixtureRequest, attack: Attack) -> Frontend:
    """A front-end that has just said hello, and one whose rings run."""
    return connected(attack).frontend if request.param == "fresh" else attack.guest().frontend
