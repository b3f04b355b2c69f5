# SPDX-License-Identifier: Apache-2.0
"""Where vmq keeps what is to outlive it and cannot be made again: fixes that were applied, figures that were measured.

/var/lib/vmq             of root
$XDG_STATE_HOME/vmq      of anybody else; without that, ~/.local/state/vmq
"""

from __future__ import annotations

import os
from pathlib import Path


def kept(name: str) -> Path:
    """The file of this name."""
    if os.geteuid() == 0:
        return Path("/var/lib/vmq") / name
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")) / "vmq" / name
