# SPDX-License-Identifier: Apache-2.0
"""`vmq measure VM [on|off]`: one question, and what to look at next."""

from __future__ import annotations

import json


def test_it_is_switched_on_and_off(vmq, engine):
    engine.answer({"status": "SUCCESS"})
    assert vmq("measure", "web") == (0, "web is measured: vmq show histograms\n", "")
    assert vmq("measure", "web", "off") == (0, "web is measured no more\n", "")
    assert [asked["params"] for asked in engine.asked] == [{"vm": "web", "on": on} for on in (True, False)]
    assert {asked["method"] for asked in engine.asked} == {"measure"}


def test_json_is_the_answer(vmq, engine):
    engine.answer({"status": "SUCCESS"})
    assert json.loads(vmq("measure", "web", "--json")[1]) == {"status": "SUCCESS"}


def test_another_word_is_refused(vmq, engine):
    code, _, error = vmq("measure", "web", "maybe")
    assert code == 2
    assert "maybe" in error
