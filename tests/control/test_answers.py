# SPDX-License-Identifier: Apache-2.0
"""Events as they are declared are those that are told."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec

import vmq
from vmq.control.answers import AnyEvent
from vmq.engine.journal import Journal

VMQ = Path(vmq.__file__).parent


def test_every_event_that_is_told_is_declared():
    """What the journal and the contract are told, by the first word of the call."""
    told = {
        node.args[0].value
        for path in VMQ.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
        if ast.unparse(node.func).endswith(("journal.tell", "_registry.tell"))
        or (path.name == "registry.py" and ast.unparse(node.func) == "self.tell")
    }
    declared = {one.__struct_config__.tag for one in AnyEvent.__args__}
    assert len(told) > 5
    assert told <= declared


def test_records_of_the_journal_are_events():
    journal = Journal(length=3)
    journal.tell("learned", vm="a", mac="52:54:00:00:00:01")
    journal.tell("vm_state", vm="a", state="running", before="connected")
    journal.tell("vm_error", vm="a", what="no memory", remedy="share it")
    journal.tell("configured", actions=2, wrong=None, remedy=None)
    kinds = [type(msgspec.convert(record, AnyEvent)).__name__ for record in journal.since(0)]
    assert kinds == ["Missed", "VmState", "VmError", "Configured"]
