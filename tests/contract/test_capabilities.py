# SPDX-License-Identifier: Apache-2.0
"""Capabilities as records, and what one set lacks."""

from __future__ import annotations

import json
from dataclasses import replace

from vmq.contract.capabilities import Capabilities, Property, enabled
from vmq.filters import Capabilities as FilterCapabilities
from vmq.filters import Field, Flag, Kind

ALL = Capabilities(queues=8)


def test_a_set_is_json_in_the_words_of_ndis():
    record = json.loads(json.dumps(ALL.record()))
    assert record["queues"] == 8
    assert record["filter_tests"] == sorted(Kind)
    assert record["filter_fields"] == sorted(Field)
    assert record["filter_flags"] == ["vlan_untagged_or_zero", "encapsulation"]
    assert "dynamic_processor_affinity_change" in record["properties"]


def test_what_is_lacking_is_named():
    """Each member on its own; more is no lack."""
    less = {
        "queues": replace(ALL, queues=7),
        "properties": replace(ALL, properties=frozenset({Property.VM_QUEUE})),
        "filter_tests": replace(ALL, filters=FilterCapabilities(tests=frozenset({Kind.EQUAL}))),
        "filter_fields": replace(ALL, filters=FilterCapabilities(fields=frozenset({Field.MAC_DESTINATION}))),
        "filter_flags": replace(ALL, filters=FilterCapabilities(flags=Flag(0))),
        "any_vlan": replace(ALL, filters=FilterCapabilities(any_vlan=False)),
        "tests_per_filter": replace(ALL, filters=FilterCapabilities(tests_per_filter=2)),
    }
    assert set(less) == set(ALL.record())
    for word, smaller in less.items():
        assert smaller.lacks(ALL) == [word]
        assert ALL.lacks(smaller) == []


def test_global_parameters_say_what_is_switched_on():
    assert enabled(ALL) == {"enabled_queue_types": ["VMQueue"], "enabled_filter_types": ["VMQueue"]}
    off = replace(ALL, properties=frozenset())
    assert enabled(off) == {"enabled_queue_types": [], "enabled_filter_types": []}
