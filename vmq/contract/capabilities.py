# SPDX-License-Identifier: Apache-2.0
"""What an uplink can do, and what of it is switched on.

Hardware capabilities say all that there is, current ones what is in force: never more. Both can change while the
engine runs: a device is replaced, a feature is lost or switched off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vmq.filters import Capabilities as FilterCapabilities


class Property(StrEnum):
    """Properties of receive queues, in the words of NDIS. Those that vmq never has are not here."""

    VM_QUEUE = "vm_queue"
    MSI_X = "msi_x"  # an eventfd to the guest for each receive queue
    DYNAMIC_PROCESSOR_AFFINITY_CHANGE = "dynamic_processor_affinity_change"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """One of the two sets."""

    queues: int  # the default queue is not one of them
    properties: frozenset[Property] = frozenset(Property)
    filters: FilterCapabilities = field(default_factory=FilterCapabilities)

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        filters = self.filters
        return {
            "queues": self.queues,
            "properties": sorted(self.properties),
            "filter_tests": sorted(filters.tests),
            "filter_fields": sorted(filters.fields),
            "filter_flags": [str(flag.name).lower() for flag in type(filters.flags) if flag in filters.flags],
            "any_vlan": filters.any_vlan,
            "tests_per_filter": filters.tests_per_filter,
        }

    def lacks(self, other: Capabilities) -> list[str]:
        """The words of `record` under which the other has something that this one has not."""
        mine, theirs = self.record(), other.record()
        return [word for word, value in theirs.items() if not _covers(mine[word], value)]


def enabled(current: Capabilities) -> Mapping[str, list[str]]:
    """The types of queues and filters that are in force."""
    types = ["VMQueue"] if Property.VM_QUEUE in current.properties else []
    return {"enabled_queue_types": types, "enabled_filter_types": types}


def _covers(mine: Any, theirs: Any) -> bool:
    return set(mine) >= set(theirs) if isinstance(mine, list) else bool(mine >= theirs)
