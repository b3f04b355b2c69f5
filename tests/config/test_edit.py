# SPDX-License-Identifier: Apache-2.0
"""Keys changed in a file's text: what was not meant stays, letter by letter."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.config.edit import Change, edited, value_of
from vmq.errors import ConfigError

TEXT = """\
# The lab's engine.
[engine]
processors = "0"   # the only one that is free

[uplink."w.an"]
kind = 'packet'
device = "eth0"

# The shop.
[vm.web]
mac  = "52:54:00:00:00:01" # printed on the box
vlan = 10

[vm.db]
mac = "52:54:00:00:00:02"
# to be continued
"""


def changed(text: str, *changes: tuple[str, str, object]) -> str:
    return edited(text, [Change(*one) for one in changes], "vmq.toml")  # type: ignore[arg-type]


def test_a_value_is_replaced_and_nothing_else() -> None:
    """Its comment stays beside it."""
    assert changed(TEXT, ("engine", "processors", "1-2")) == TEXT.replace(
        'processors = "0"', 'processors = "1-2"'
    )
    assert changed(TEXT, ("vm.web", "vlan", 20)) == TEXT.replace("vlan = 10", "vlan = 20")


def test_a_key_is_added_and_taken_out() -> None:
    new = changed(TEXT, ("vm.web", "mtu", 1500), ("uplink.w.an", "promiscuous", True))
    assert tomllib.loads(new)["vm"]["web"] == {"mac": "52:54:00:00:00:01", "vlan": 10, "mtu": 1500}
    assert tomllib.loads(new)["uplink"]["w.an"]["promiscuous"] is True
    assert [line for line in TEXT.splitlines() if line not in new.splitlines()] == []
    assert changed(TEXT, ("vm.web", "vlan", None)) == TEXT.replace("vlan = 10\n", "")
    assert changed(TEXT, ("vm.web", "mtu", None), ("vm.none", "mtu", None)) == TEXT


def test_a_table_that_is_not_there_is_made() -> None:
    new = changed(TEXT, ("doctor", "ignore", ("D13",)))
    assert tomllib.loads(new)["doctor"] == {"ignore": ["D13"]}
    assert new.startswith(TEXT.rstrip("\n"))


def test_tables_of_every_spelling() -> None:
    """Inline and dotted keys are the same tables."""
    for text in ('vm = { web = { mac = "a" } }\n', 'vm.web.mac = "a" # it\n', '[vm]\nweb.mac = "a"\n'):
        assert tomllib.loads(changed(text, ("vm.web", "mac", "b"))) == {"vm": {"web": {"mac": "b"}}}


def test_what_cannot_be_changed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vmq.toml: \[vm.web\] vlan cannot be changed: .* by hand"):
        changed("vm = 5\n", ("vm.web", "vlan", 1))
    with pytest.raises(ConfigError, match="cannot be changed"):
        changed("[[[", ("vm.web", "vlan", 1))


def test_a_value_is_read() -> None:
    assert value_of(TEXT, "vm.web", "vlan") == 10
    assert value_of(TEXT, "uplink.w.an", "device") == "eth0"
    assert value_of(TEXT, "vm.web", "mtu") is None
    assert value_of(TEXT, "doctor", "ignore") is None


@given(st.sampled_from(("engine", "vm.web", "doctor")), st.text() | st.integers() | st.booleans())
def test_any_value_comes_back_and_taking_it_out_again_leaves_the_rest(table: str, value: object) -> None:
    """What tomllib reads is what was asked for; `edited` itself compares the rest."""
    once = changed(TEXT, (table, "key", value))
    assert value_of(once, table, "key") == value
    assert tomllib.loads(TEXT).items() <= tomllib.loads(changed(once, (table, "key", None))).items()
