# SPDX-License-Identifier: Apache-2.0
"""The rules of conftest.py, on small test files of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
MARKERS = "".join(f"    {name}: {name}\n" for name in ("root", "compiled", "interpreted"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run one test file under our conftest, in a process of its own; the outcome as (exit status, output)."""

    def run(text: str, **environment: str) -> tuple[int, str]:
        (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
        (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{MARKERS}")
        (tmp_path / "test_it.py").write_text(f"import os, subprocess, time, pytest\n{text}\n")
        argv = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", str(tmp_path)]
        clean = {
            name: value for name, value in os.environ.items() if name not in ("VMQ_NO_SKIP", "PYTEST_ADDOPTS")
        }
        done = subprocess.run(
            argv, cwd=tmp_path, env={**clean, **environment}, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    return run


SKIP_INSIDE = "def test_it():\n    pytest.skip('no such device')"
SKIP_MODULE = "pytest.skip('not today', allow_module_level=True)"
SKIP_MARKED = "@pytest.mark.skipif(True, reason='flaky')\ndef test_it(): pass"


@pytest.mark.parametrize("text", [SKIP_INSIDE, SKIP_MODULE, SKIP_MARKED])
def test_skip_that_the_machine_does_not_explain_is_a_failure(run, text):
    """CI passes no test over in silence; elsewhere the summary says why a test was skipped."""
    status, output = run(f"{text}\ndef test_other(): pass", VMQ_NO_SKIP="1")

    assert status != 0, output
    assert "VMQ_NO_SKIP=1 allows only" in output
    assert run(f"{text}\ndef test_other(): pass")[0] in (0, 5)


def test_compiled_only_test_is_skipped_where_it_has_no_meaning_and_nowhere_else(run):
    """The reason is believed in the interpreted pass; the other passes run the test."""
    text = "@pytest.mark.compiled\ndef test_it(): assert os.environ['NUMBA_DISABLE_JIT'] == '0'"

    status, output = run(text, VMQ_NO_SKIP="1", NUMBA_DISABLE_JIT="1")
    assert (status, "1 skipped" in output) == (0, True), output

    status, output = run(text, VMQ_NO_SKIP="1", NUMBA_DISABLE_JIT="0")
    assert (status, "1 passed" in output) == (0, True), output


def test_false_reason_is_not_believed(run):
    """A reason of the list that does not hold on this machine is a failure like any other."""
    text = "def test_it(): pytest.skip('interpreted: has no meaning in compiled code')"

    assert run(text, VMQ_NO_SKIP="1", NUMBA_DISABLE_JIT="1")[0] == 1


def test_expected_failure_is_not_a_skip(run):
    """pytest reports xfail with the outcome of a skip."""
    status, output = run("@pytest.mark.xfail\ndef test_it(): assert False", VMQ_NO_SKIP="1")

    assert (status, "1 xfailed" in output) == (0, True), output


def test_forgotten_process_is_ended_and_fails_the_run(run, tmp_path):
    """Nothing that a test started outlives the run."""
    text = "def test_it(tmp_path):\n    child = subprocess.Popen(['sleep', '600'])\n    print('child', child.pid)"

    status, output = run(text + "\n    with open('pid', 'w') as file: file.write(str(child.pid))")

    assert status == 1, output
    assert "left behind" in output
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
