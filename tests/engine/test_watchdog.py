# SPDX-License-Identifier: Apache-2.0
"""Nobody hangs in a call, whatever the other end does to its eventfd."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from vmq.dataplane import state
from vmq.engine.watchdog import Watchdog

FULL = (1 << 64) - 2


class Row:
    """All that the watchdog sees of a worker."""

    def __init__(self) -> None:
        self.row = np.zeros(1, state.worker)[0]


@pytest.fixture
def worker() -> Row:
    return Row()


@pytest.fixture
def watchdog(worker: Row) -> Iterator[Watchdog]:
    one = Watchdog([worker])  # type: ignore[list-item]
    one.start()
    yield one
    one.close()
    one.close()


@pytest.fixture
def eventfd() -> Iterator[int]:
    """A full one that blocks."""
    fd = os.eventfd(0)
    os.eventfd_write(fd, FULL)
    yield fd
    os.close(fd)


def test_control_is_freed_and_the_call_is_given(watchdog: Watchdog, eventfd: int):
    """H12.5: the peer has taken O_NONBLOCK back."""
    watchdog.call(eventfd)
    assert list(watchdog.freed) == [eventfd]
    assert os.eventfd_read(eventfd) >= 1
    assert not os.get_blocking(eventfd)


def test_a_worker_is_freed(watchdog: Watchdog, worker: Row, eventfd: int):
    def call() -> None:
        worker.row["calling"] = eventfd + 1
        os.eventfd_write(eventfd, 1)
        worker.row["calling"] = 0

    hanging = threading.Thread(target=call)
    hanging.start()
    hanging.join(20)
    assert not hanging.is_alive()
    assert list(watchdog.freed) == [eventfd]
    assert os.eventfd_read(eventfd) >= 1


def test_a_semaphore_is_freed_too(watchdog: Watchdog, worker: Row):
    """EFD_SEMAPHORE: a read takes one only."""
    fd = os.eventfd(0, os.EFD_SEMAPHORE)
    os.eventfd_write(fd, FULL)
    watchdog.call(fd)
    assert list(watchdog.freed) == [fd]
    os.close(fd)


def test_a_full_eventfd_that_does_not_block_is_nobody_s_fault(watchdog: Watchdog):
    """The driver has a call pending."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(fd, FULL)
    watchdog.call(fd)
    assert os.eventfd_read(fd) == FULL
    assert not watchdog.freed
    os.close(fd)


def test_a_worker_that_is_merely_slow_loses_no_call(watchdog: Watchdog, worker: Row):
    """A worker that is not scheduled for a while in the middle of a call."""
    fd = os.eventfd(5, os.EFD_NONBLOCK)
    worker.row["calling"] = fd + 1
    time.sleep(0.2)
    assert os.eventfd_read(fd) == 5
    assert not watchdog.freed
    os.close(fd)


def test_a_busy_worker_is_not_looked_into(watchdog: Watchdog, worker: Row, eventfd: int):
    """Another round: another call."""
    worker.row["calling"] = eventfd + 1
    for _ in range(100):
        worker.row["rounds"] += 1
        time.sleep(0.002)
    worker.row["calling"] = 0
    assert not watchdog.freed
    assert os.eventfd_read(eventfd) == FULL


def test_a_descriptor_that_is_gone_is_no_error(
    watchdog: Watchdog, worker: Row, caplog: pytest.LogCaptureFixture
):
    worker.row["calling"] = 1 << 20
    time.sleep(0.2)
    worker.row["calling"] = 0
    assert watchdog._thread.is_alive()
    assert caplog.text == ""
