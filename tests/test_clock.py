# SPDX-License-Identifier: Apache-2.0
"""The clock of kernels."""

from __future__ import annotations

import time

from tests.dataplane.rig import Rig
from vmq.clock import now


def test_the_clock_is_the_monotonic_clock():
    with Rig() as rig:
        before = time.monotonic_ns()
        assert before <= int(now(rig.worker())) <= time.monotonic_ns()
