# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: words that may be shortened, mistakes as one line, times."""

from __future__ import annotations

import argparse

import pytest

from vmq import API_SOCKET
from vmq.cli.grammar import CONFIG, Parser, expand, receive_queue, seconds
from vmq.contract import DEFAULT_QUEUE, DROP_QUEUE
from vmq.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("v", "vms"),
        ("queues", "queues"),
        ("x", "x"),
        ("", ""),
        ("port", "port"),
        ("pr", "processors"),
    ],
)
def test_a_word_is_expanded_while_unambiguous(word: str, expanded: str) -> None:
    """A whole word is itself, even when another one begins with it."""
    assert expand(word, ("vms", "queues", "port", "ports", "processors")) == expanded


def test_a_word_that_begins_several_is_refused_with_all_of_them() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"^po is ambiguous: port, ports$"):
        expand("po", ("vms", "port", "ports", "processors"))
    with pytest.raises(argparse.ArgumentTypeError, match=r"^d is ambiguous: default, drop$"):
        receive_queue("d")


def test_a_mistake_is_a_config_error_with_the_help_as_remedy() -> None:
    """It is printed where all errors are, and ends with 2."""
    with pytest.raises(ConfigError) as refused:
        Parser(prog="vmq show").parse_args(["x"])

    assert str(refused.value) == "vmq show: unrecognized arguments: x. Remedy: See vmq show --help"
    assert refused.value.exit_code == 2


def test_a_time_is_positive_and_finite() -> None:
    """nan compares with nothing, and a week is long enough."""
    assert seconds("0.5") == 0.5
    for text in ("0", "-1", "nan", "inf", "1e9"):
        with pytest.raises(argparse.ArgumentTypeError):
            seconds(text)


def test_help_names_the_defaults_that_the_code_has(vmq) -> None:
    """The same constants."""
    assert API_SOCKET in vmq("show", "--help")[1]
    assert CONFIG in vmq("run", "--help")[1]


def test_a_receive_queue_is_a_number_or_the_word_of_one_that_is_always_there() -> None:
    """The ids that the contract has for them."""
    assert receive_queue("default") == receive_queue("de") == DEFAULT_QUEUE
    assert receive_queue("drop") == DROP_QUEUE
    assert receive_queue("65537") == 65537
    for text in ("d", "", "-1", "three", "٣", "1.0"):
        with pytest.raises(argparse.ArgumentTypeError):
            receive_queue(text)
