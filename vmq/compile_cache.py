# SPDX-License-Identifier: Apache-2.0
"""Where compiled kernels are kept: a directory for exactly these sources, flags and versions.

Numba's own key misses edits in called files and the bounds-check flag (docs/adr/0004). Reading this needs no compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parent
COMPILED_FOLDERS = ("abi", "dataplane", "guest")


def _sources() -> list[Path]:
    folders = [path for folder in COMPILED_FOLDERS for path in sorted((PACKAGE / folder).glob("*.py"))]
    return [PACKAGE / "jit.py", *folders]


def _cache_home() -> Path:
    """A folder private to the user; VMQ_CACHE_DIR, CACHE_DIRECTORY (systemd), XDG_CACHE_HOME, in that order."""
    for name, below in (("VMQ_CACHE_DIR", ""), ("CACHE_DIRECTORY", "kernels"), ("XDG_CACHE_HOME", "vmq")):
        if os.environ.get(name):
            return Path(os.environ[name]) / below
    home = os.environ.get("HOME")
    return Path(home) / ".cache" / "vmq" if home else Path(f"/var/tmp/vmq-{os.getuid()}")  # noqa: S108 - private by its mode


def cache_directory() -> Path:
    """The cache of exactly these sources, flags and versions."""
    key = hashlib.sha256()
    for path in _sources():
        key.update(path.name.encode() + b"\0" + path.read_bytes())
    flags = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_"))
    versions = [platform.python_version(), *(version(name) for name in ("numpy", "numba", "llvmlite"))]
    key.update("\0".join(flags + versions).encode())
    return _cache_home() / key.hexdigest()[:24]
