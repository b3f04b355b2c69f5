# SPDX-License-Identifier: Apache-2.0
"""The processors that this process may use."""

from __future__ import annotations

import os
import threading

from vmq.affinity import on_processor, processors


def test_the_processors_of_a_process_are_those_of_all_its_threads():
    """One keeps to a processor, the other keeps off it: a configuration may still name either."""
    before = os.sched_getaffinity(0)
    one, others = {min(before)}, before - {min(before)}
    ready, stop = threading.Event(), threading.Event()

    def keep_to_one() -> None:
        os.sched_setaffinity(0, one)
        ready.set()
        stop.wait()

    thread = threading.Thread(target=keep_to_one)
    thread.start()
    try:
        ready.wait()
        os.sched_setaffinity(0, others or one)
        assert processors() == before
    finally:
        os.sched_setaffinity(0, before)
        stop.set()
        thread.join()
    assert processors() >= before


def test_a_thread_keeps_to_a_processor_for_a_while() -> None:
    before = os.sched_getaffinity(0)
    with on_processor(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
