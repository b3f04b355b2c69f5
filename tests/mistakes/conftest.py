# SPDX-License-Identifier: Apache-2.0
"""One engine for the mistakes of a file of tests; each test gives it a configuration of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mistakes.made import Doctor, Made


@pytest.fixture(autouse=True)
def the_engine_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMQ_API", raising=False)


@pytest.fixture(scope="module")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with Made(tmp_path_factory.mktemp("engine")).start().ready() as made:
        yield made


@pytest.fixture
def engine(shared_engine: Made) -> Iterator[Made]:
    """It has no VM and no uplink; afterwards it has none again."""
    yield shared_engine
    shared_engine.changes("")


@pytest.fixture
def doctor(engine: Made, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(engine.path, capsys)


@pytest.fixture
def before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The doctor on a file of which no engine runs."""
    return Doctor(tmp_path / "vmq.toml", capsys)
