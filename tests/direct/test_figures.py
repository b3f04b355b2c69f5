# SPDX-License-Identifier: Apache-2.0
"""The file of figures: kept, believed, and in how many ways not; what an engine goes by then."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.direct.test_costs import steady
from vmq.direct import figures as module
from vmq.direct.figures import LOOK_SECONDS, NOT_HERE, Figures, Known, believed
from vmq.errors import HostError

Record = dict[str, Any]
COSTS = tuple(steady(-100, -50, -10, 30))


def written(path: Path, change: Callable[[Record], object] = lambda _: None) -> Path:
    """Good figures, but for a change."""
    told = json.loads(Figures.of(COSTS).text())
    change(told)
    path.write_text(json.dumps(told))
    return path


def test_what_is_kept_is_what_was_measured(tmp_path: Path) -> None:
    found, path = Figures.of(COSTS), tmp_path / "placement.json"
    path.write_text(found.text())
    assert believed(path) == found
    assert found.band().whose.startswith("measured here on 2")


def part(told: Record, values: list[Any]) -> None:
    told["costs"][1]["direct"]["kernel"] = values


CHANGES: list[tuple[Callable[[Record], object], str]] = [
    (lambda told: told.update(version=2), "is of version 2, not 1"),
    (lambda told: told.update(version="1"), "has no figures of frames|is of version"),
    (lambda told: told.pop("version"), "is of version None"),
    (lambda told: told.update(cpu="Abacus"), "measured on another processor: Abacus, here"),
    (lambda told: told.update(kernel="2.4.20"), "measured on another kernel: 2.4.20, here"),
    (lambda told: told.update(kernel=7), "has no figures of frames"),
    (lambda told: told.update(at=1e300), "measured at no time"),
    (lambda told: told.update(more=1), "has no figures of frames"),
    (lambda told: told.update(costs=[]), "has no two lengths"),
    (lambda told: told["costs"].pop(0) and told.update(costs=told["costs"][:1]), "has no two lengths"),
    (lambda told: told["costs"].reverse(), "has no two lengths"),
    (lambda told: told["costs"][0].update(length=-1), "has no two lengths"),
    (lambda told: told["costs"][-1].update(length=10**30), "has no two lengths|has no figures"),
    (lambda told: part(told, [1, 2]), "has not the same 3 rounds"),
    (lambda told: part(told, [1, 2, 3, 4]), "has not the same 3 rounds"),
    (lambda told: part(told, []), "has not the same 3 rounds"),
    (lambda told: part(told, [1, 2, 1e7]), "no frame of 512 bytes takes"),
    (lambda told: part(told, [1, 2, 10**400]), "has no figures of frames|no frame of 512"),
    (lambda told: part(told, [1, 2, None]), "has no figures of frames"),
    (lambda told: part(told, [-900, -900, -900]), "a direct frame of 512 bytes takes no time"),
]


@pytest.mark.parametrize(("change", "wrong"), CHANGES)
def test_figures_that_are_not_believed_have_a_reason(
    tmp_path: Path, change: Callable[[Record], object], wrong: str
) -> None:
    with pytest.raises(HostError, match=wrong) as caught:
        believed(written(tmp_path / "placement.json", change))
    assert "vmq bench --placement" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0\0", "ÿ", '{"version": 1e999}', "[" * 100_000])
def test_garbage_is_no_figures(tmp_path: Path, text: str) -> None:
    path = tmp_path / "placement.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(HostError, match=r"has no figures of frames|is of version"):
        believed(path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, wrong in ((tmp_path / "pipe", "it is no file"), (tmp_path, "it is no file")):
        with pytest.raises(HostError, match=wrong):
            believed(path)
    with pytest.raises(HostError, match="nothing was measured here yet"):
        believed(tmp_path / "none")
    monkeypatch.setattr(module, "BYTES_MOST", 100)
    with pytest.raises(HostError, match="more than 100 bytes"):
        believed(written(tmp_path / "long"))


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("figures") / "placement.json"
    path.write_bytes(content)
    with pytest.raises(HostError):
        believed(path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(["version", "kernel", "cpu", "at", "costs"]), json_values)
def test_no_value_of_a_key_is_more_than_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    path = written(
        tmp_path_factory.mktemp("figures") / "placement.json", lambda told: told.update({key: value})
    )
    with contextlib.suppress(HostError):
        assert isinstance(believed(path).band().words(), str)


def test_an_engine_goes_by_the_file_while_it_is_good(tmp_path: Path) -> None:
    known, path, now = Known(), tmp_path / "placement.json", 100.0
    assert known.band == NOT_HERE
    known.look(now, str(path))
    assert (known.band, known.path) == (NOT_HERE, path)
    assert "nothing was measured here yet" in known.why

    written(path)
    known.look(now + LOOK_SECONDS / 2, str(path))
    assert known.band == NOT_HERE
    known.look(now + LOOK_SECONDS, str(path))
    assert (known.band, known.why) == (Figures.of(COSTS).band(), "")

    os.replace(written(tmp_path / "other", lambda told: told.update(cpu="Abacus")), path)
    known.look(now + 2 * LOOK_SECONDS, str(path))
    assert known.band == NOT_HERE
    assert "another processor" in known.why


def test_another_file_of_the_configuration_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "kept", lambda name: tmp_path / "usual" / name)
    known, path = Known(), written(tmp_path / "placement.json")
    known.look(100.0, None)
    assert known.path == tmp_path / "usual" / "placement.json"
    known.look(100.0, str(path))
    assert (known.path, known.why) == (path, "")
    known.look(100.0, None)
    assert known.why


def test_the_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, path = Known(), written(tmp_path / "placement.json")
    known.look(100.0, str(path))
    monkeypatch.setattr(module, "believed", None)
    known.look(100.0 + LOOK_SECONDS, str(path))
    assert known.why == ""


def test_the_form_is_plain_json(tmp_path: Path) -> None:
    text = Figures.of(COSTS).text()
    assert text.endswith("}\n")
    assert msgspec.json.decode(text)["costs"][0]["length"] == 64
