# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of the configuration file, for editors (`#:schema` in Taplo) and other tools.

It is made from the records. Two things differ between record and file and are put right here: TOML has no
null, so a key that may be left out simply is not required; and what forms.py reads has another type in the
file. The schema knows each key alone: clashes between tables are found by `vmq check`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vmq.config.forms import FORMS
from vmq.config.records import Config


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of vmq.toml."""
    made = msgspec.json.schema(Config)
    for table in made["$defs"].values():
        table["additionalProperties"] = False
        for key, says in table["properties"].items():
            table["properties"][key] = _of_the_file(key, says)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _of_the_file(key: str, says: dict[str, Any]) -> dict[str, Any]:
    """What may be written for a key, from what its record holds."""
    kinds = [kind for kind in says.pop("anyOf", []) if kind != {"type": "null"}]
    says = {**says, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})}
    if key in FORMS:
        says = {word: says[word] for word in ("description", "default") if word in says} | FORMS[key][1]
    if says.get("default") in (None, "", ()) or isinstance(says["default"], dict):
        says.pop("default", None)
    return says
