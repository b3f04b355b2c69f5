# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema describes the file, not the records."""

from __future__ import annotations

import json

from vmq.config.schema import schema


def test_the_schema_has_the_tables_of_the_file_and_closes_them() -> None:
    """Unknown keys are errors, in an editor too."""
    tables = schema()["$defs"]

    assert set(tables["Config"]["properties"]) == {"engine", "uplink", "vm", "doctor"}
    assert all(table["additionalProperties"] is False for table in tables.values())
    assert tables["Vm"]["required"] == ["mac"]
    assert tables["Tap"]["required"] == ["kind", "device"]


def test_the_schema_has_no_null_and_is_json() -> None:
    """TOML has no null: a key that may be left out is not required, and that is all."""
    assert "null" not in json.dumps(schema())


def test_keys_with_a_form_have_the_type_of_the_file() -> None:
    """What is written, not what the record holds."""
    tables = schema()["$defs"]

    assert tables["Engine"]["properties"]["processors"]["type"] == "string"
    assert tables["Vm"]["properties"]["mac"] == {
        "description": 'its address, as "52:54:00:00:00:01", or a list of them',
        "type": ["string", "array"],
        "items": {"type": "string"},
    }
    assert tables["Pcap"]["properties"]["repeat"] == {
        "description": "a number of replays from 1, or true for no end",
        "default": 1,
        "type": ["integer", "boolean"],
        "minimum": 1,
    }
    assert tables["Vm"]["properties"]["vlan"] == {
        "description": "a number from 1 to 4094; leave it out for untagged and priority-tagged frames",
        "type": "integer",
        "minimum": 1,
        "maximum": 4094,
    }
