# SPDX-License-Identifier: Apache-2.0
"""The tree of errors: the type says whose fault it is, and with it what is done about it.

    VmqError                 something failed, and can be said in one line          exit 1
    ├── ConfigError          the operator: a file, key or option is wrong           exit 2
    │   ├── ConfigErrors     several of them: all that is wrong in one file         exit 2
    │   └── HostError        the host refuses what was asked for: no such device,
    │                        no permission, path in use                             exit 2
    ├── ProtocolError        the peer, a guest or its front-end: that VM port is
    │                        stopped, counted and logged once; others are served    -
    └── ApiError             a running engine, or its absence, answered a request   exit 1 or 2

Any other exception is our own fault: within one connection or request it closes that one, and the
traceback is logged once; in a worker or while applying a change the process ends.

`str(error)` is always one line, `where: wrong. Remedy: what to do`: whoever catches an error prints it and
adds nothing. Only ConfigErrors has more lines: one for each error. Kernels raise nothing: they return fault
codes. Permission is the operator's to give, so a refused one is a HostError and not a class of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

# Statuses of the API that mean "the request is wrong", as opposed to "it could not be done".
WRONG_REQUEST = frozenset(
    {"INVALID_PARAMETER", "INVALID_LENGTH", "FILE_NOT_FOUND", "NOT_FOUND", "NOT_SUPPORTED"}
)


def _line(place: str, wrong: str, remedy: str) -> str:
    """One line that leaves the terminal alone, whatever texts of a file or of a peer are quoted in it."""
    text = f"{place}: {wrong}" if place else wrong
    if remedy:
        text = f"{text.rstrip('.')}. Remedy: {remedy}"
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


class VmqError(Exception):
    """What failed and the remedy, in words for the person who has to act."""

    exit_code: int = 1  # of a process that ends because of this error

    def __init__(self, wrong: str, remedy: str = "", *, place: str = "") -> None:
        super().__init__(_line(place, wrong, remedy))
        self.wrong = wrong
        self.remedy = remedy

    def record(self) -> dict[str, str]:
        """The same words, for JSON."""
        return {"wrong": self.wrong, "remedy": self.remedy}


class ConfigError(VmqError):
    """The operator's fault: `where` names the file and the key, or the command and the option."""

    exit_code = 2

    def __init__(self, where: str, wrong: str, remedy: str) -> None:
        super().__init__(wrong, remedy, place=where)
        self.where = where

    def record(self) -> dict[str, str]:
        return {"where": self.where, "wrong": self.wrong, "remedy": self.remedy}


class HostError(ConfigError):
    """The host refuses what was asked for; `where` names the key that asked."""


class ConfigErrors(ConfigError):
    """All errors of one file, in the order of the file's tables; one line each."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.where, first.wrong, first.remedy)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class ProtocolError(VmqError):
    """The peer broke `rule`, cited as tag and title. `fatal`: its framing is lost, so the connection ends."""

    def __init__(self, rule: str, wrong: str, remedy: str = "", *, fatal: bool = False) -> None:
        super().__init__(wrong, remedy, place=rule)
        self.rule = rule
        self.fatal = fatal

    def record(self) -> dict[str, str]:
        return {"rule": self.rule, "wrong": self.wrong, "remedy": self.remedy}


class ApiError(VmqError):
    """A request to a running engine was not fulfilled; `status` is the word the API answers with."""

    def __init__(self, status: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.status = status
        self.exit_code = 2 if status in WRONG_REQUEST else 1

    def record(self) -> dict[str, str]:
        return {"status": self.status, "message": self.wrong, "remedy": self.remedy}
