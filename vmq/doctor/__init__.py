# SPDX-License-Identifier: Apache-2.0
"""`vmq doctor`: what is set up so that it does nothing, or harm; with evidence and remedy.

    facts.py                the host                            ┐
    machines.py ◄─ qemu.py, libvirt.py     its guests           ├─► situation.py ─► rules_*.py ─► catalogue.py: findings
    the configuration; the rows of `vmq show`                   ┘

A rule is a pure function of a Situation. It reads no file and asks nobody, so every rule is tested on recorded hosts and
rows. Nothing here changes anything: a finding says which command would, and which one undoes it.

This package is used by the command line, which asks a running engine over its socket: nothing here imports a compiler.
"""

from __future__ import annotations

from vmq.doctor.catalogue import BY_CODE, CATALOGUE, Report, examine
from vmq.doctor.facts import Facts
from vmq.doctor.finding import SEVERITIES, Finding
from vmq.doctor.machines import Machine
from vmq.doctor.situation import VIEWS, Situation

__all__ = [
    "BY_CODE",
    "CATALOGUE",
    "SEVERITIES",
    "VIEWS",
    "Facts",
    "Finding",
    "Machine",
    "Report",
    "Situation",
    "examine",
]
