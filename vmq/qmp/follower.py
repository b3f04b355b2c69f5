# SPDX-License-Identifier: Apache-2.0
"""The connection to QEMU: asked after connecting, after every change that it tells of, and now and then.

Its place is the one thread of control, and nothing in it waits. QEMU is trusted no more than its guest: whoever listens at
the path may send what he wants, never end a line, never answer, or go. So everything has a limit:

    bytes       CHUNK every READ_PAUSE_SECONDS: a flood costs control a few per cent, and nobody else's turn
    silence     ANSWER_SECONDS for a greeting or an answer, then the connection is worth nothing
    questions   BURST at once, then one in INTERVAL_SECONDS: each may become a new version of the tables
    attempts    after RETRY_SECONDS, twice as long each time, at most RETRY_MAX_SECONDS; an answer begins anew

Between changes it asks every POLL_SECONDS all the same. That finds a peer that has fallen silent, and gives addresses that
were another's a second chance.

QEMU's socket serves one client at a time and lets the next one wait without a word: such a wait ends as silence.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from vmq.errors import ProtocolError
from vmq.qmp.dialogue import REMEDY, Dialogue
from vmq.qmp.lists import RxFilter

CHUNK = 16384
READ_PAUSE_SECONDS = 0.01
ANSWER_SECONDS = 10.0
BURST, INTERVAL_SECONDS = 8, 0.5
FIRST_SECONDS = 0.1  # a front-end that comes and goes faster makes no connection
RETRY_SECONDS, RETRY_MAX_SECONDS = 0.5, 30.0
POLL_SECONDS = 30.0
MAY_WRITE = "let the user that vmq runs as write to that socket, and search its directories"

Trouble = tuple[str, str]  # what, remedy


class Follower:
    """Follows one QEMU from `start` to `close`, both of which never fail and may come twice.

    `on_answer` is called with the devices of every answer, `on_trouble` when something else stands in the way than before.
    """

    def __init__(
        self,
        path: str,
        nic: str | None,
        on_answer: Callable[[tuple[RxFilter, ...]], None],
        on_trouble: Callable[[str, str], None],
    ) -> None:
        self.path, self.nic = path, nic
        self.trouble: Trouble | None = None
        self._on_answer, self._on_trouble = on_answer, on_trouble
        self._open = False
        self._socket: socket.socket | None = None
        self._dialogue = Dialogue(nic)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._retry = RETRY_SECONDS
        self._due = 0.0  # when to ask although nothing has changed
        self._paid = 0.0  # up to when the questions so far have used the budget

    @property
    def state(self) -> str:
        """off, connecting, or following: the last question was answered."""
        if not self._open:
            return "off"
        return "following" if self._due and self.trouble is None else "connecting"

    def start(self) -> None:
        """Begin; the event loop runs."""
        if not self._open:
            self._open, self.trouble, self._retry = True, None, RETRY_SECONDS
            self._after("retry", FIRST_SECONDS, self._connect)

    def close(self) -> None:
        """End."""
        self._open = False
        self._disconnect()

    # --- the socket ----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_UNIX, kind)
            self._socket.connect(self.path)
        except OSError as error:
            remedy = MAY_WRITE if isinstance(error, PermissionError) else REMEDY
            self._lost(f"cannot be connected to: {error.strerror or error}", remedy)
            return
        self._dialogue = Dialogue(self.nic)
        self._expect("a greeting")
        self._listen()

    def _disconnect(self) -> None:
        for name in tuple(self._timers):
            self._timers.pop(name).cancel()
        self._due = 0.0
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _lost(self, what: str, remedy: str) -> None:
        """The connection is worth nothing: try again later."""
        self._disconnect()
        self._after("retry", self._retry, self._connect)
        self._retry = min(2 * self._retry, RETRY_MAX_SECONDS)
        self._tell(what, remedy)

    def _listen(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(f"the connection broke: {error.strerror or error}", REMEDY)
            return
        if not data:
            self._lost("QEMU has closed the connection", REMEDY)
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._after("listen", READ_PAUSE_SECONDS, self._listen)
        self._hear(data)

    def _send(self, data: bytes, for_what: str) -> None:
        """A command of some hundred bytes: the buffer of the socket has room, or nobody reads at the other end."""
        try:
            sent = self._socket.send(data) if self._socket is not None else 0
        except OSError:
            sent = 0
        if sent == len(data):
            self._expect(for_what)
        else:
            self._lost("it takes no commands", REMEDY)

    # --- questions and answers -----------------------------------------------------------------------------

    def _hear(self, data: bytes) -> None:
        try:
            heard = self._dialogue.feed(data)
        except ProtocolError as error:
            self._lost(error.wrong, error.remedy)
            return
        if heard.send:
            self._send(heard.send, "an answer")
        elif not self._dialogue.waits_for:
            self._forget("silence")
            if heard.answer is not None:
                self._due = asyncio.get_running_loop().time() + POLL_SECONDS
                self._retry = RETRY_SECONDS
            self._schedule()
        if isinstance(heard.answer, str):
            self._tell(f"QEMU refuses: {heard.answer}", 'set qmp_nic to the "id" of the VM\'s network device')
        elif heard.answer is not None:
            self.trouble = None
            self._on_answer(heard.answer)

    def _schedule(self) -> None:
        """The next question: as soon as the budget allows if something has changed, else when it is due."""
        loop = asyncio.get_running_loop()
        if "ask" in self._timers and not self._dialogue.stale:
            return
        self._forget("ask")
        when = self._paid - (BURST - 1) * INTERVAL_SECONDS if self._dialogue.stale else self._due
        self._after("ask", max(when - loop.time(), 0.0), self._ask)

    def _ask(self) -> None:
        if not self._dialogue.waits_for:
            self._paid = max(self._paid, asyncio.get_running_loop().time()) + INTERVAL_SECONDS
            self._send(self._dialogue.question(), "an answer")

    def _expect(self, what: str) -> None:
        wrong = f"QEMU does not send {what}: it is busy, or another program is connected to the socket"
        self._after("silence", ANSWER_SECONDS, lambda: self._lost(wrong, REMEDY))

    def _tell(self, what: str, remedy: str) -> None:
        trouble = f"{self.path}: {what}", remedy
        if self.trouble != trouble:
            self.trouble = trouble
            self._on_trouble(*trouble)

    def _after(self, name: str, seconds: float, then: Callable[[], None]) -> None:
        """Have something done later; what had the name before is not."""

        def due() -> None:
            del self._timers[name]
            then()

        self._forget(name)
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, due)

    def _forget(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()
