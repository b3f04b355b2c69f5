# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled kernels: private, and another one for every change that matters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmq import compile_cache
from vmq.compile_cache import COMPILED_FOLDERS

ROOT = Path(__file__).resolve().parents[1]


def key(**environment: str) -> str:
    """The cache directory of another, compiled process."""
    code = "import numba; import vmq.jit; print(numba.config.CACHE_DIR)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "VMQ_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def test_the_cache_lies_where_it_is_asked_to_and_is_private(tmp_path):
    for variable, below in (
        ("VMQ_CACHE_DIR", ""),
        ("CACHE_DIRECTORY", "kernels"),
        ("XDG_CACHE_HOME", "vmq"),
        ("HOME", ".cache/vmq"),
    ):
        base = tmp_path / variable
        others = {"XDG_CACHE_HOME": "", "CACHE_DIRECTORY": ""}
        place = Path(key(**others | {variable: str(base)}))
        assert place.parent == base / below
        assert place.stat().st_mode & 0o077 == 0


@pytest.mark.compiled
def test_a_child_finds_its_own_cache_and_not_that_of_its_parent(tmp_path):
    """Parent and child may differ in flags, and the sources may have been edited between them."""
    assert "NUMBA_CACHE_DIR" not in os.environ


def test_flags_and_bounds_checks_have_caches_of_their_own(tmp_path):
    """Numba's own key misses the flag, and would run unchecked code in the checked pass."""
    places = {
        key(VMQ_CACHE_DIR=str(tmp_path), **flags)
        for flags in ({}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_OPT": "1"})
    }
    assert len(places) == 3


def test_any_edit_of_any_kernel_is_another_cache(tmp_path, monkeypatch):
    """Numba's own key misses edits in files that a kernel calls into."""
    for folder in COMPILED_FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.py").write_text("x = 1\n")
    (tmp_path / "jit.py").write_text("")
    monkeypatch.setattr(compile_cache, "PACKAGE", tmp_path)
    seen = {compile_cache.cache_directory()}
    for path in [tmp_path / "jit.py", *sorted(tmp_path.glob("*/one.py"))]:
        path.write_text(path.read_text() + "# edited\n")
        seen.add(compile_cache.cache_directory())
    (tmp_path / "dataplane" / "two.py").write_text("")
    seen.add(compile_cache.cache_directory())
    assert len(seen) == 3 + len(COMPILED_FOLDERS)
