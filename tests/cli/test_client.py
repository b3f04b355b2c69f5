# SPDX-License-Identifier: Apache-2.0
"""One question, one answer; and every way in which there is none."""

from __future__ import annotations

import os
import socket

import pytest

from vmq.cli import client
from vmq.errors import ApiError


def test_a_question_is_one_line_with_the_given_parameters(engine) -> None:
    """{"api", "method", "params"}; what was not given is not sent."""
    engine.answer([{"name": "web"}])

    assert client.ask(engine.path, "show", what="vms", vlan=None) == [{"name": "web"}]
    assert engine.asked == [{"api": 1, "method": "show", "params": {"what": "vms"}}]


def test_the_path_is_given_or_in_the_environment_or_the_default(engine, monkeypatch) -> None:
    """--api, then $VMQ_API, then where the configuration puts it."""
    engine.answer(None)
    assert client.ask(None, "show") is None

    monkeypatch.delenv("VMQ_API")
    assert client.default_path() == "/run/vmq/api.sock"


def test_a_refusal_keeps_its_status_and_remedy(engine) -> None:
    """The engine's words are the user's."""
    engine.refuse(status="NOT_FOUND", message='there is no VM "x"', remedy="See vmq show")

    with pytest.raises(ApiError) as refused:
        client.ask(engine.path, "show")

    assert str(refused.value) == 'there is no VM "x". Remedy: See vmq show'
    assert (refused.value.status, refused.value.exit_code) == ("NOT_FOUND", 2)


def test_no_engine_says_how_to_start_one(tmp_path) -> None:
    """The most likely reason first."""
    with pytest.raises(ApiError) as refused:
        client.ask(f"{tmp_path}/none", "show")

    assert str(refused.value) == (
        f"{tmp_path}/none: no engine answers: No such file or directory. Remedy: Is one running? "
        "Start it: vmq run --config /etc/vmq/vmq.toml; or name its socket: --api PATH"
    )
    assert (refused.value.status, refused.value.exit_code) == ("UNAVAILABLE", 1)


def test_a_socket_left_behind_and_a_path_too_long_are_no_engine(tmp_path) -> None:
    """A refused connection, and an error without a number."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/left")
    with pytest.raises(ApiError, match="no engine answers: Connection refused"):
        client.ask(f"{tmp_path}/left", "show")
    with pytest.raises(ApiError, match="no engine answers: AF_UNIX path too long"):
        client.ask("/" + "x" * 200, "show")


def test_permission_is_not_absence(tmp_path, monkeypatch) -> None:
    """The remedy is another one."""

    def denied(*_: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(client, "_connection", denied)

    with pytest.raises(ApiError) as refused:
        client.ask("/run/vmq/api.sock", "show")

    assert str(refused.value) == (
        "/run/vmq/api.sock: permission denied. Remedy: Join the group that owns the socket, or become root"
    )


def test_an_engine_that_does_not_answer_is_waited_for_a_bounded_time(tmp_path, monkeypatch) -> None:
    """A command in a hook must end."""
    monkeypatch.setattr(client, "PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/silent")
        silent.listen()

        with pytest.raises(ApiError) as refused:
            client.ask(f"{tmp_path}/silent", "show")

    assert refused.value.status == "TIMEOUT"
    assert str(refused.value).startswith(f"{tmp_path}/silent: no answer within 0 s. Remedy: ")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.0 400\r\n\r\n", b"[]\n", b"5\n", b'{"x": 1}\n', b'{"error": 5}\n', b"\xff\n"]
)
def test_what_is_not_the_api_is_said_to_be_something_else(engine, answer: bytes) -> None:
    """An answer is judged by its shape."""
    engine.answers = [answer]

    with pytest.raises(ApiError) as refused:
        client.ask(engine.path, "show")

    assert str(refused.value) == (
        f"{engine.path}: what answers is not a vmq engine. Remedy: Check --api and $VMQ_API"
    )


def test_an_end_without_an_answer_points_to_the_log(engine) -> None:
    """The engine knows why."""
    engine.answers = [b""]

    with pytest.raises(ApiError, match="closed without an answer"):
        client.ask(engine.path, "show")


@pytest.mark.parametrize("answer", [None, {}, [1], "x"])
def test_an_answer_of_another_kind_is_a_failure(engine, answer: object) -> None:
    """Two versions that do not understand each other say so."""
    engine.answer(answer)
    with pytest.raises(ApiError, match="the answer to enum_queues is not a list of records"):
        client.ask_rows(None, "enum_queues")
    if answer != {}:
        with pytest.raises(ApiError, match="the answer to free_queue is not a record"):
            client.ask_record(None, "free_queue")


def test_following_gives_each_event_until_the_engine_ends(engine) -> None:
    """One question, and then nothing is asked."""
    engine.answers = [b'{"result":{"number":2}}\n{"event":{"number":1}}\n{"event":{"number":2}}\n']
    told = client.follow(None, 0)

    assert [next(told), next(told)] == [{"number": 1}, {"number": 2}]
    with pytest.raises(ApiError, match="the engine has ended, or told more than was read"):
        next(told)
    assert engine.asked == [{"api": 1, "method": "subscribe", "params": {"since": 0}}]


def test_following_is_refused_as_any_question(engine) -> None:
    engine.refuse(status="NOT_SUPPORTED", message="no method 'subscribe'", remedy="")
    with pytest.raises(ApiError, match="no method 'subscribe'"):
        next(client.follow(None, 0))


@pytest.mark.parametrize(
    "line", [b"x", b"[]", b"{}", b'{"event":1}', b'{"event":{}}', b'{"event":{"number":"1"}}']
)
def test_what_is_no_event_is_a_failure(engine, line: bytes) -> None:
    engine.answers = [b'{"result":{"number":2}}\n' + line + b"\n"]
    with pytest.raises(ApiError, match="what the engine tells is no event"):
        next(client.follow(None, 0))
