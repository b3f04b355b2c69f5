# SPDX-License-Identifier: Apache-2.0
"""The records: by value, immutable, and each key described once for people and once for the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vmq.config.records import KINDS, Config, Engine, Tap, Vm, tables
from vmq.config.schema import schema

MANUAL = Path(__file__).parents[2] / "docs" / "man" / "vmq.toml.5"
VM = Vm(socket="/run/vmq/a.sock", mac=("52:54:00:00:00:01",))


def test_equal_configurations_are_equal_and_hash_alike() -> None:
    """Plan and apply: a plan between two equal configurations is empty, so equality is by value."""
    one = Config(uplinks={"a": Tap(device="t0"), "b": Tap(device="t1")}, vms={"v": VM})
    two = Config(
        uplinks={"b": Tap(device="t1"), "a": Tap(device="t0")}, vms={"v": msgspec.structs.replace(VM)}
    )

    assert one == two
    assert hash(one) == hash(two)
    assert one != Config(uplinks=one.uplinks)


def test_records_do_not_change() -> None:
    """A configuration in force cannot drift from what was read."""
    with pytest.raises(AttributeError):
        VM.vlan = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Engine().api = "/x"  # type: ignore[misc]


def test_kind_is_the_word_of_the_file() -> None:
    """[uplink.NAME] kind chooses the record, and the record gives the word back."""
    assert Tap(device="t0").kind == "tap"
    assert {name: kind.__struct_config__.tag for name, kind in KINDS.items()} == {
        name: name for name in KINDS
    }


def keys() -> list[tuple[str, str, dict[str, Any]]]:
    tables = {name: table for name, table in schema()["$defs"].items() if name != "Config"}
    return [(name, key, says) for name, table in tables.items() for key, says in table["properties"].items()]


@pytest.mark.parametrize(("table", "key", "says"), [entry for entry in keys() if entry[1] != "kind"])
def test_every_key_says_what_it_is_set_to_and_its_range(table: str, key: str, says: dict[str, Any]) -> None:
    """The phrase is the remedy of an error: it must not promise what the limits refuse."""
    phrase = says["description"]

    assert not phrase.endswith(".")
    if "minimum" in says and "maximum" in says:
        assert re.search(rf"from {says['minimum']} to {says['maximum']}\b", phrase), phrase
    for word in says.get("enum", ()):
        assert f'"{word}"' in phrase


@pytest.mark.parametrize("key", sorted({key for _, key, _ in keys()}))
def test_every_key_stands_in_the_manual_page(key: str) -> None:
    """vmq.toml(5) is written by hand; a key without an entry there is not finished."""
    assert re.search(rf"^\.(?:B|BR) {key}\b", MANUAL.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_uplink_stands_in_the_manual_page(kind: str) -> None:
    """The same for the kinds."""
    assert f'.SS "kind = \\(dq{kind}\\(dq"' in MANUAL.read_text(encoding="utf-8")


def test_a_configuration_as_tables_has_every_key_in_values_of_json() -> None:
    """Two that are equal have equal tables; each table has the name that it has in the file."""
    found = tables(Config(uplinks={"lan": Tap(device="t0", processors=(1,))}, vms={"a": VM}))

    assert set(found) == {"engine", "doctor", "uplink.lan", "vm.a"}
    assert json.loads(json.dumps(found)) == found
    assert (found["uplink.lan"]["kind"], found["uplink.lan"]["processors"]) == ("tap", [1])
    assert set(found["vm.a"]) == set(Vm.__struct_fields__)
