# SPDX-License-Identifier: Apache-2.0
"""Values that a JSON Schema allows, as far as the schema of the API has words."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# Numbers and words that mean something somewhere: most of what is random names nothing.
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 65535, 65537, 1 << 16 | 1, -1, 1 << 63, 1 << 70])
WORDS = st.sampled_from(
    ["", "a", "b", "config", "lan", "web", "52:54:00:00:00:01", "10.0.0.1", "0x800", "unicast", "x" * 300]
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


def allowed(says: dict[str, Any], records: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema allows."""
    if "$ref" in says:
        return allowed(records[says["$ref"].rpartition("/")[2]], records)
    if "anyOf" in says:
        return st.one_of([allowed(one, records) for one in says["anyOf"]])
    if "enum" in says:
        return st.sampled_from(says["enum"])
    kind = says.get("type")
    if kind == "object":
        return _record(says, records)
    if kind == "array":
        return st.lists(allowed(says["items"], records), max_size=4)
    if kind == "integer":
        least, most = says.get("minimum"), says.get("maximum", says.get("exclusiveMaximum", 1 << 70) - 1)
        within = NUMBERS.filter(lambda one: (least is None or one >= least) and one <= most)
        return within | st.integers(least, most)
    simple: dict[Any, st.SearchStrategy[Any]] = {"string": WORDS, "boolean": st.booleans(), "null": st.none()}
    return simple.get(kind, ANYTHING)


def _record(says: dict[str, Any], records: dict[str, Any]) -> st.SearchStrategy[Any]:
    members = {name: allowed(one, records) for name, one in says.get("properties", {}).items()}
    required = {name: members.pop(name) for name in says.get("required", ())}
    return st.fixed_dictionaries(required, optional=members)


def nearly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The same with a member more, less or another."""

    @st.composite
    def spoiled(draw: st.DrawFn) -> Any:
        made = dict(draw(strategy))
        name = draw(st.sampled_from([*made, "nonsense"]))
        if draw(st.booleans()):
            made[name] = draw(ANYTHING)
        else:
            made.pop(name, None)
        return made

    return spoiled()
