# SPDX-License-Identifier: Apache-2.0
"""vmq capabilities: what there is beside what is in force."""

from __future__ import annotations

import json

HARDWARE = {"queues": 1024, "filter_fields": ["mac_destination", "vlan_id"], "any_vlan": True}
CURRENT = {"queues": 4, "filter_fields": ["mac_destination"], "any_vlan": True}
TYPES = {"enabled_queue_types": ["VMQueue"]}
TABLE = """\
capability                     hardware  current
queues                             1024  4
filter_fields mac_destination       yes  yes
filter_fields vlan_id               yes  no
any_vlan                            yes  yes
enabled_queue_types                   -  VMQueue
"""


def test_a_capability_is_a_line_and_what_was_lost_is_seen(vmq, engine) -> None:
    engine.answer(HARDWARE, CURRENT, TYPES)

    assert vmq("capabilities", "--uplink", "lan") == (0, TABLE, "")
    assert [one["method"] for one in engine.asked] == [
        "hardware_capabilities",
        "current_capabilities",
        "global_parameters",
    ]
    assert {one["params"]["uplink"] for one in engine.asked} == {"lan"}


def test_json_has_the_three_answers(vmq, engine) -> None:
    engine.answer(HARDWARE, CURRENT, TYPES)
    assert json.loads(vmq("capa", "--json")[1]) == {"hardware": HARDWARE, "current": CURRENT, "global": TYPES}
