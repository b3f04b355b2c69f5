# SPDX-License-Identifier: Apache-2.0
"""The QEMU Machine Protocol as far as it is needed, without I/O: JSON objects, one a line.

    QEMU                              we
    {"QMP": …}                   →    {"execute": "qmp_capabilities", "id": 0}
    {"return": {}, "id": 0}      →    ready: `question` may be sent
    {"event": …}                      `stale`: what we know may be old
    {"return": […], "id": n}          the answer to the question

One question is open at a time. NIC_RX_FILTER_CHANGED comes once and not again until the question was asked (qmp
"NIC_RX_FILTER_CHANGED"), so an event after the question is asked about once more, also when it stands before the answer:
QEMU 7.2 finds the answer in one turn of its main loop and sends it in a later one, and an event between the two goes
first. RESET and RESUME empty and restore the lists without that event.

The peer may be anything. A line has an end within LINE_MAX bytes, is an object, and answers what was asked; whatever
else comes is a ProtocolError, and the connection is worth nothing any more. An error in place of an answer is one of the
answers.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import msgspec

from vmq.errors import ProtocolError
from vmq.qmp.lists import RxFilter, RxFilterInfos, printable

LINE_MAX = 1 << 20  # an answer has 28 kB for each device that takes all VLANs
CHANGES = frozenset({"NIC_RX_FILTER_CHANGED", "RESET", "RESUME"})
RULE = 'qmp "Protocol Specification"'
REMEDY = 'give QEMU "-qmp unix:PATH,server=on,wait=off", and vmq alone that path'

Answer = tuple[RxFilter, ...] | str  # the devices, or why QEMU refuses to tell


class _Error(msgspec.Struct):
    desc: str = ""


class _Line(msgspec.Struct):
    """Any line: the member that is there says what it is. Raw members are read when they were asked for."""

    greeting: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw, name="QMP")
    event: str | None = None
    result: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw, name="return")
    error: _Error | None = None
    id: int | None = None


class Heard(NamedTuple):
    """What came of some bytes."""

    send: bytes = b""
    answer: Answer | None = None


class Dialogue:
    """One connection. `nic`: the device to ask for, None for all."""

    def __init__(self, nic: str | None) -> None:
        self.nic = nic
        self.waits_for = "greeting"  # what the peer owes: greeting, capabilities, answer, or "" for nothing
        self.stale = False
        self._number = 0
        self._bytes = bytearray()
        self._searched = 0
        self._lines = msgspec.json.Decoder(_Line)
        self._answers = msgspec.json.Decoder(RxFilterInfos)

    def question(self) -> bytes:
        """What asks for the lists; nothing may be owed."""
        self._number += 1
        self.waits_for, self.stale = "answer", False
        arguments = {} if self.nic is None else {"name": self.nic}
        return self._command("query-rx-filter", arguments)

    def feed(self, data: bytes) -> Heard:
        """Take what has arrived; ProtocolError ends the dialogue."""
        self._bytes += data
        send, answer = b"", None
        while (end := self._bytes.find(b"\n", self._searched)) >= 0:
            line = bytes(self._bytes[:end])
            del self._bytes[: end + 1]
            self._searched = 0
            heard = self._line(line)
            send, answer = send + heard.send, heard.answer if heard.answer is not None else answer
        self._searched = len(self._bytes)
        if self._searched > LINE_MAX:
            raise _wrong(f"a line does not end within {LINE_MAX} bytes")
        return Heard(send, answer)

    def _line(self, text: bytes) -> Heard:
        try:
            line = self._lines.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            shown = printable(text[:200].decode("ascii", "replace"))
            raise _wrong(f"what listens there does not speak QMP, but says: {shown}") from None
        if line.event is not None:
            self.stale = self.stale or line.event in CHANGES
            return Heard()
        if self.waits_for == "greeting":
            return self._greeted(line)
        if not self.waits_for or line.id != self._number or not (line.result or line.error):
            raise _wrong("it answers what nobody has asked")
        return self._answered(line)

    def _greeted(self, line: _Line) -> Heard:
        if not bytes(line.greeting):
            raise _wrong("it does not begin with a greeting")
        self.waits_for = "capabilities"
        return Heard(self._command("qmp_capabilities", {}))

    def _answered(self, line: _Line) -> Heard:
        asked, self.waits_for = self.waits_for, ""
        if line.error is not None:
            refusal = printable(line.error.desc)
            if asked == "capabilities":
                raise _wrong(f"it refuses to begin: {refusal}")
            return Heard(answer=refusal)
        if asked == "capabilities":
            self.stale = True  # nothing is known yet
            return Heard()
        try:
            devices = self._answers.decode(line.result)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise _wrong(f"its answer is no list of receive filters: {printable(str(error))}") from None
        return Heard(answer=tuple(map(RxFilter.of, devices)))

    def _command(self, name: str, arguments: dict[str, str]) -> bytes:
        words = {"execute": name, "id": self._number}
        return json.dumps({**words, "arguments": arguments} if arguments else words).encode() + b"\n"


def _wrong(what: str) -> ProtocolError:
    return ProtocolError(RULE, what, REMEDY, fatal=True)
