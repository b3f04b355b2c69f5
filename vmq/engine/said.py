# SPDX-License-Identifier: Apache-2.0
"""What is said of one VM port, so that a guest that errs without end fills no log."""

from __future__ import annotations

import time

SILENCE_SECONDS = 60.0
LINES_MAX = 8


class Said:
    """Lines of one VM port in the log: each once a minute, and not too many of them."""

    def __init__(self) -> None:
        self._lines: set[str] = set()
        self._since = 0.0

    def fresh(self, line: str) -> bool:
        """Whether to say it now."""
        now = time.monotonic()
        if now - self._since > SILENCE_SECONDS:
            self._since = now
            self._lines.clear()
        if line in self._lines or len(self._lines) >= LINES_MAX:
            return False
        self._lines.add(line)
        return True
