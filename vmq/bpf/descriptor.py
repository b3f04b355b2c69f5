# SPDX-License-Identifier: Apache-2.0
"""What programs, maps and links are to us: a descriptor, closed once."""

from __future__ import annotations

import os
from typing import Self


class Descriptor:
    """An object of the kernel that lives as long as somebody holds it."""

    fd: int

    def close(self) -> None:
        """Give up our descriptor. It may be called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
