# SPDX-License-Identifier: Apache-2.0
"""What changes by itself while frames flow: decided here from numbers and a clock that are given, done by the engine.

    smooth   one noisy number a second ──► one that may be judged
    balancer busy processors ──► which receive queue goes to which one: spread under load, gathered without
    scarce   fewer receive queues than VMs ──► who has one, by weight and traffic
    guard    two ways of the same frames, measured in turns ──► whether the better one is the better one

Each of them is a look once a second and answers with what is to change, in words with the numbers; most looks change
nothing. Nothing is done, read or awaited here, so a test asks the same question as the engine. Three rules hold for
all: a mark to begin with and another to end with, a number of looks before anything happens, and a time for which
what was moved stays. docs/processors.md draws it.
"""

from __future__ import annotations

from vmq.dynamic.balancer import Balancer, Marks, Move, Served
from vmq.dynamic.guard import Answer, Guard, Path, Sample, Turn, Verdict, judge
from vmq.dynamic.scarce import Claim, Scarce, Swap, Terms, first_holders
from vmq.dynamic.smooth import Smoother

__all__ = [
    "Answer",
    "Balancer",
    "Claim",
    "Guard",
    "Marks",
    "Move",
    "Path",
    "Sample",
    "Scarce",
    "Served",
    "Smoother",
    "Swap",
    "Terms",
    "Turn",
    "Verdict",
    "first_holders",
    "judge",
]
