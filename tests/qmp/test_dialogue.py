# SPDX-License-Identifier: Apache-2.0
"""The protocol without a socket: what is said when, and that anything may come."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.errors import ProtocolError
from vmq.qmp.dialogue import LINE_MAX, Dialogue, Heard
from vmq.qmp.lists import RxFilter

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}\r\n'
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "NIC_RX_FILTER_CHANGED", "data": {"path": "/x"}}\r\n'
DEVICES = b'[{"name": "net0", "main-mac": "52:54:00:00:00:01"}]'
ANSWER = (RxFilter("net0", 0x010000005452),)


def reply(number: int, what: bytes = b"{}") -> bytes:
    return b'{"return": %s, "id": %d}\r\n' % (what, number)


def ready(nic: str | None = None) -> Dialogue:
    dialogue = Dialogue(nic)
    dialogue.feed(GREETING + reply(0))
    return dialogue


def test_the_dialogue_of_qemu() -> None:
    """qmp "Protocol Specification": greeting, capabilities, command."""
    dialogue = Dialogue(None)

    assert dialogue.feed(GREETING) == Heard(b'{"execute": "qmp_capabilities", "id": 0}\n')
    assert dialogue.waits_for == "capabilities"
    assert dialogue.feed(reply(0)) == Heard()
    assert (dialogue.waits_for, dialogue.stale) == ("", True)
    assert dialogue.question() == b'{"execute": "query-rx-filter", "id": 1}\n'
    assert dialogue.feed(reply(1, DEVICES)) == Heard(answer=ANSWER)
    assert (dialogue.waits_for, dialogue.stale) == ("", False)


def test_one_device_is_asked_for_by_its_name() -> None:
    """qmp_nic: QEMU answers with this one alone."""
    assert json.loads(ready("net0").question()) == {
        "execute": "query-rx-filter",
        "id": 1,
        "arguments": {"name": "net0"},
    }


@pytest.mark.parametrize("cut", range(1, len(EVENT), 7))
def test_lines_arrive_however_they_are_cut(cut: int) -> None:
    """A stream has no messages."""
    dialogue, stream = Dialogue(None), GREETING + reply(0) + EVENT
    heard = [dialogue.feed(stream[start : start + cut]) for start in range(0, len(stream), cut)]
    dialogue.question()
    answer = reply(1, DEVICES)
    heard += [dialogue.feed(answer[start : start + cut]) for start in range(0, len(answer), cut)]

    assert [one for one in heard if one != Heard()] == [
        Heard(b'{"execute": "qmp_capabilities", "id": 0}\n'),
        Heard(answer=ANSWER),
    ]


@pytest.mark.parametrize("event", ["NIC_RX_FILTER_CHANGED", "RESET", "RESUME"])
@pytest.mark.parametrize("before", [True, False])
def test_a_change_after_the_question_is_asked_about(event: str, *, before: bool) -> None:
    """The event comes once and not again until the question; QEMU may send it before an answer that it is not in.

    A reset and a migration come without it.
    """
    dialogue, line = ready(), EVENT.replace(b"NIC_RX_FILTER_CHANGED", event.encode())
    dialogue.question()
    dialogue.feed(line + reply(1, DEVICES) if before else reply(1, DEVICES) + line)

    assert dialogue.stale


def test_a_change_before_the_question_is_in_its_answer() -> None:
    """One question for any number of events."""
    dialogue = ready()
    dialogue.feed(3 * EVENT)
    dialogue.question()
    dialogue.feed(reply(1, DEVICES))

    assert not dialogue.stale


def test_other_events_change_nothing() -> None:
    """QEMU tells of much."""
    dialogue = ready()
    dialogue.question()
    dialogue.feed(reply(1, DEVICES) + EVENT.replace(b"NIC_RX_FILTER_CHANGED", b"BALLOON_CHANGE"))

    assert not dialogue.stale


def test_a_refusal_is_an_answer() -> None:
    """No device has this name: the connection is good all the same."""
    dialogue = ready("net9")
    dialogue.question()
    error = b'{"error": {"class": "GenericError", "desc": "invalid net client name: net9\\u001b"}, "id": 1}\n'

    assert dialogue.feed(error) == Heard(answer="invalid net client name: net9?")
    assert (dialogue.waits_for, dialogue.stale) == ("", False)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b"QEMU 7.2.22 monitor - type 'help'\r\n", "does not speak QMP, but says: QEMU 7.2.22 monitor"),
        (b"\r\n", "does not speak QMP"),
        (b"\xff\xfe\x00\n", "does not speak QMP"),
        (b"{}\n", "does not begin with a greeting"),
        (b"[" * 60000 + b"\n", "does not speak QMP"),
        (b'{"x":' + b"[" * 60000 + b"\n", "does not speak QMP"),
        (GREETING + b'{"error": {"desc": "no"}, "id": 0}\n', "it refuses to begin: no"),
        (GREETING + reply(1), "it answers what nobody has asked"),
        (GREETING + b'{"return": {}}\n', "it answers what nobody has asked"),
        (GREETING + b"{}\n", "it answers what nobody has asked"),
        (GREETING + reply(0) + reply(0), "it answers what nobody has asked"),
        (GREETING + reply(0) + GREETING, "it answers what nobody has asked"),
        (GREETING + b'{"return": {}, "id": 1e400}\n', "does not speak QMP"),
        (GREETING + b'{"return": {}, "id": "0"}\n', "does not speak QMP"),
    ],
)
def test_whatever_is_not_the_protocol_ends_it(lines: bytes, words: str) -> None:
    """One line that says what came, and nothing of it that moves a cursor."""
    with pytest.raises(ProtocolError) as refused:
        Dialogue(None).feed(lines)

    assert words in refused.value.wrong
    assert refused.value.wrong.isprintable()
    assert len(refused.value.wrong) < 200
    assert refused.value.fatal


@pytest.mark.parametrize("devices", [b"{}", b"[5]", b'[{"name": "n"}]', b"null", b"[" * 60000 + b"]" * 60000])
def test_an_answer_that_is_none_ends_it(devices: bytes) -> None:
    """Refused whole, before anything of it is used."""
    dialogue = ready()
    dialogue.question()

    with pytest.raises(ProtocolError):
        dialogue.feed(reply(1, devices))


def test_a_line_without_end_is_not_collected_without_end() -> None:
    """What is kept of a peer is bounded."""
    dialogue, piece = ready(), b" " * 16384
    for _ in range(LINE_MAX // len(piece)):
        dialogue.feed(piece)

    with pytest.raises(ProtocolError, match="a line does not end"):
        dialogue.feed(b" ")


PIECES = [
    GREETING,
    reply(0),
    reply(1, DEVICES),
    reply(1),
    reply(2, DEVICES),
    EVENT,
    b"\n",
    b'{"event": null}\n',
    b"{",
    b"\0",
]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=40)), max_size=12))
def test_any_bytes_are_heard_or_refused(pieces: list[bytes]) -> None:
    """Nothing that a peer sends is an error of ours."""
    dialogue = Dialogue(None)
    try:
        for piece in pieces:
            heard = dialogue.feed(piece)
            assert heard.answer in (None, ANSWER)
            if not dialogue.waits_for:
                dialogue.question()
    except ProtocolError:
        pass
