# SPDX-License-Identifier: Apache-2.0
"""The tables of names: each has one name, one sentence and its constant."""

from __future__ import annotations

from vmq.dataplane import reasons


def test_each_drop_has_one_name_one_sentence_and_its_constant():
    names = [name for name, _ in reasons.DROPS]
    assert len(set(names)) == len(names) <= reasons.DROP_COUNT
    assert [getattr(reasons, name.upper()) for name in names] == list(range(len(names)))
    assert all(
        sentence and sentence == sentence.strip() and not sentence.endswith(".")
        for _, sentence in reasons.DROPS
    )


def test_each_fault_has_one_name_and_its_constant():
    names = [name for name, _ in reasons.FAULTS]
    assert len(set(names)) == len(names)
    assert [getattr(reasons, name.upper()) for name in names[1:]] == list(range(1, len(names)))
    assert (reasons.FAULTS[reasons.NO_FAULT], reasons.NO_FAULT) == (("none", ""), 0)


def test_a_refusal_is_a_drop_or_a_fault_and_never_both():
    """-1 - drop and -1 - FAULT_BASE - fault do not meet."""
    assert len(reasons.DROPS) < reasons.FAULT_BASE
