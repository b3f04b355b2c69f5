# SPDX-License-Identifier: Apache-2.0
"""Receive filters: what they can say, which are refused, which frames they match, which of them overlap.

    Filter = FieldTest AND FieldTest AND …        a queue's filters: Filter OR Filter OR …

    check       a filter on its own: is it one, can the engine apply it, can any frame pass it?
    matches     the definition: a filter and the bytes of a frame
    witness     two filters: a frame that both match, or None; `overlap` is whether there is one
    compiled    the same filters as rows for the kernel that frames meet (vmq/dataplane/match.py)

Everything here is arithmetic on records: no I/O, no state. docs/filters.md is the reference for users; NDIS, whose
filters these are, is cited by the names of its structures.
"""

from __future__ import annotations

from vmq.filters.judge import check
from vmq.filters.model import Capabilities, Field, FieldTest, Filter, Flag, Kind, PacketType
from vmq.filters.overlap import overlap, witness
from vmq.filters.reference import matches

__all__ = [
    "Capabilities",
    "Field",
    "FieldTest",
    "Filter",
    "Flag",
    "Kind",
    "PacketType",
    "check",
    "matches",
    "overlap",
    "witness",
]
