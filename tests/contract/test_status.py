# SPDX-License-Identifier: Apache-2.0
"""Each operation answers with the statuses that are documented for it."""

from __future__ import annotations

import pytest

from vmq.contract.status import COMPLETION_STATUSES, STATUSES, Operation, refusal


def test_every_operation_has_its_statuses():
    """vmq-semantics.md §2.1: thirteen, and one of vmq's own."""
    assert set(STATUSES) == set(Operation)
    assert len(STATUSES) == 14
    assert all("SUCCESS" in statuses for statuses in STATUSES.values())


@pytest.mark.parametrize("operation", [*Operation])
def test_a_bad_id_is_refused_in_a_documented_word(operation):
    """Flaw 3 of the sample driver: INVALID_PARAMETER where FILE_NOT_FOUND is promised."""
    asking = {
        Operation.HARDWARE_CAPABILITIES,
        Operation.CURRENT_CAPABILITIES,
        Operation.ENUM_QUEUES,  # name nothing, so are never refused
    }
    error = refusal(operation, "5: no such thing", "name another")
    expected = {"CLEAR_FILTER": "FILE_NOT_FOUND", "ENUM_FILTERS": "FAILURE"}
    assert error.status == expected.get(operation.value, "INVALID_PARAMETER")
    assert error.status in STATUSES[operation] or operation in asking
    assert str(error) == f"{operation.value}: 5: no such thing. Remedy: name another"


def test_file_not_found_belongs_to_one_operation():
    assert [one for one in Operation if "FILE_NOT_FOUND" in STATUSES[one]] == [Operation.CLEAR_FILTER]
    assert "RESOURCES" in COMPLETION_STATUSES
