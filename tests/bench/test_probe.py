# SPDX-License-Identifier: Apache-2.0
"""The probe of wake-ups: a kick that is answered takes some time, one that is not is an error."""

from __future__ import annotations

import os

import pytest

from bench.probe import LONGEST_MS, Probe, echoing


@pytest.fixture
def eventfds():
    found = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    yield found
    for descriptor in found:
        os.close(descriptor)


def test_answered_kick_takes_less_than_the_longest_wait() -> None:
    with echoing(min(os.sched_getaffinity(0))) as probe:
        for _ in range(3):
            assert 0 < probe.nanoseconds() < LONGEST_MS * 1_000_000
            os.eventfd_read(int(probe.row["call"][0]))


def test_kick_that_nobody_answers_is_an_error(eventfds) -> None:
    kick, call = eventfds
    probe = Probe(kick, call, call)
    try:
        with pytest.raises(ValueError, match="not answered"):
            probe.nanoseconds()
        assert os.eventfd_read(kick) == 1
    finally:
        probe.close()
