# SPDX-License-Identifier: Apache-2.0
"""What guests send: frames like those that are replayed; no figure where one was lost without a name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import ways
from bench.delivery import RefusedError
from bench.systems import FLOWS, SOURCE, WORKING_SET, Counts, Load, Served, mac
from bench.ways import frames_from, missing, pair_once, prove_pair
from tests.dpdk.frames import mac_bytes
from tests.engine.running import Running


@pytest.mark.parametrize(("senders", "size"), [(1, 64), (4, 1514)])
def test_guests_send_as_many_frames_and_flows_as_are_replayed(senders: int, size: int) -> None:
    """A flow is of one sender; no two frames are alike."""
    sent = frames_from(senders, SOURCE, size)
    frames = [one for several in sent.values() for one in several]

    assert {one[6:12] for one in sent[senders - 1]} == {mac_bytes(mac(senders - 1))}
    assert {one[:6] for one in frames} == {mac_bytes(SOURCE)}
    assert {len(one) for one in frames} == {size}
    assert len(frames) * size > WORKING_SET - size
    assert len(set(frames)) == len(frames)
    assert sum(len({one[26:38] for one in several}) for several in sent.values()) == FLOWS


def test_frame_without_a_name_is_missing() -> None:
    assert missing(100, 60, 40) == ""
    assert missing(100, 60, 39) == "100 frames sent, 60 arrived, 39 dropped by name"
    assert missing(100, 101, 0)


def server(tmp_path: Path, lie: int = 0) -> Callable[[str, Load], contextlib.AbstractContextManager[Served]]:
    """Two VMs of an engine in this process, which tells of so many drops that there were not."""

    @contextlib.contextmanager
    def serve(_system: str, load: Load) -> Iterator[Served]:
        with Running(tmp_path) as running:
            names = [f"v{number}" for number in range(load.guests)]
            running.configure(**{one: running.vm(one, mac=(mac(n),)) for n, one in enumerate(names)})
            (tmp_path / "log").write_text("the last words\n")

            def counts() -> Counts:
                drops = [row["drops"] for row in running.show("queues")]
                return Counts(0, lie + sum(count for one in drops for count in one.values()))

            sockets = [Path(running.path(one)) for one in names]
            yield Served(sockets, False, tmp_path / "log", counts=counts)
            running.configure()

    return serve


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short runs of few frames."""
    frames = {0: frames_from(1, mac(1), 64)[0][:200]}
    monkeypatch.setattr(ways, "frames_from", lambda *_: frames)
    monkeypatch.setattr(ways, "CALM_SECONDS", 0.0)
    monkeypatch.setattr(ways, "WARM_SECONDS", 0.05)
    monkeypatch.setattr(ways, "MEASURED_SECONDS", 0.1)


def test_pair_is_proved_and_measured(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "serving", server(tmp_path))

    assert prove_pair("vmq", 64) == 200
    assert pair_once("vmq", 64) > 0


def test_frame_lost_without_a_name_refuses_the_figure(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's last words are told, too."""
    monkeypatch.setattr(ways, "serving", server(tmp_path, lie=-1))

    with pytest.raises(
        RefusedError, match=r"200 frames sent, 200 arrived, -1 dropped by name\nthe last words"
    ):
        prove_pair("vmq", 64)


def test_frame_that_is_not_what_was_sent_refuses_the_figure(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte of one frame: the one behind it is not the next of the table, either."""
    monkeypatch.setattr(ways, "serving", server(tmp_path))
    first, *others = frames_from(1, mac(1), 64)[0][:200]
    wrong = first[:-1] + bytes([first[-1] ^ 1])
    monkeypatch.setattr(ways, "expecting", lambda _frames: {"expected": [wrong, *others]})

    with pytest.raises(RefusedError, match=r"vmq: 198 of 200 frames"):
        prove_pair("vmq", 64)


def test_quick_rows_are_ours_of_rows_that_there_are() -> None:
    values = iter([1.0, 3.0])

    assert set(ways.QUICK) <= set(ways.PEERS)
    assert ways.ours(lambda: next(values), 2)["vmq"].values == (1.0, 3.0)
