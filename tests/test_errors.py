# SPDX-License-Identifier: Apache-2.0
"""The tree of errors: whose fault it is, the one line it prints, the code the process ends with."""

from __future__ import annotations

import pytest

from vmq.errors import ApiError, ConfigError, ConfigErrors, HostError, ProtocolError, VmqError


def test_config_error_is_place_fault_remedy_on_one_line() -> None:
    """Errors name the file, the key and the remedy on one line."""
    error = ConfigError("vmq.toml: [vm.web] vlan", "0 is not a VLAN", "Leave vlan out")

    assert str(error) == "vmq.toml: [vm.web] vlan: 0 is not a VLAN. Remedy: Leave vlan out"
    assert error.record() == {
        "where": "vmq.toml: [vm.web] vlan",
        "wrong": "0 is not a VLAN",
        "remedy": "Leave vlan out",
    }


@pytest.mark.parametrize("wrong", ["not\na  number.", "not a\r\n\tnumber"])
def test_line_breaks_in_a_text_do_not_break_the_line(wrong: str) -> None:
    """A value quoted from a file or a peer cannot add lines to a log."""
    assert str(ConfigError("f", wrong, "r")) == "f: not a number. Remedy: r"


def test_several_errors_are_one_line_each_and_one_config_error() -> None:
    """Who catches ConfigError catches all of a file, and each is printed."""
    error: ConfigError = ConfigErrors([ConfigError("f: a", "x", "y"), HostError("f: b", "x", "z")])

    assert str(error) == "f: a: x. Remedy: y\nf: b: x. Remedy: z"
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VmqError("it failed"), 1),
        (ConfigError("f", "w", "r"), 2),
        (HostError("f", "w", "r"), 2),
        (ProtocolError('vhost-user "Header"', "w"), 1),
        (ApiError("UNAVAILABLE", "w"), 1),
        (ApiError("NOT_FOUND", "w"), 2),
        (ApiError("INVALID_PARAMETER", "w"), 2),
    ],
)
def test_exit_code_follows_from_whose_fault_it_is(error: VmqError, code: int) -> None:
    """0 done, 1 it failed, 2 the request or the configuration is wrong."""
    assert error.exit_code == code


def test_protocol_error_cites_the_rule() -> None:
    """A peer's error names the rule it broke; it is not fatal to the connection unless said."""
    error = ProtocolError('vhost-user "Ring states"', "the ring is not started", "Restart the VM")

    assert str(error) == 'vhost-user "Ring states": the ring is not started. Remedy: Restart the VM'
    assert error.record() == {
        "rule": 'vhost-user "Ring states"',
        "wrong": "the ring is not started",
        "remedy": "Restart the VM",
    }
    assert not error.fatal
    assert ProtocolError("r", "w", fatal=True).fatal


def test_api_error_without_remedy_ends_after_the_message() -> None:
    """No empty "Remedy:" is ever printed."""
    assert str(ApiError("FAILURE", "the worker did not answer")) == "the worker did not answer"
    assert VmqError("it failed", "Try again").record() == {"wrong": "it failed", "remedy": "Try again"}
    assert ApiError("NOT_FOUND", 'no VM "x"', "See vmq show").record() == {
        "status": "NOT_FOUND",
        "message": 'no VM "x"',
        "remedy": "See vmq show",
    }
