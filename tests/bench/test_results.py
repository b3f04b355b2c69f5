# SPDX-License-Identifier: Apache-2.0
"""Rows of several runs make one page: of one machine, of one code."""

from __future__ import annotations

import json
import os
import platform
import sys

from bench import results
from bench.results import Results, as_json, code, commit, fingerprint, machine_id, told_version
from bench.stats import Figure

ABOUT = {"cpu": "x", "commit": "abc", "code": "1"}
ROW = {"vmq": Figure.of([5.0, 6.0, 7.0])}


def test_json_has_every_run_and_the_machine() -> None:
    assert json.loads(as_json({"64-4": ROW}, ABOUT)) == {
        "machine": ABOUT,
        "rows": {"64-4": {"vmq": [5.0, 6.0, 7.0]}},
    }


def test_rows_of_the_same_code_and_machine_are_merged_the_latest_of_each(tmp_path) -> None:
    folder = tmp_path / "results"
    files = []
    for name, about, rows in (
        ("one", ABOUT, {"a": ROW, "b": ROW}),
        ("other machine", ABOUT | {"cpu": "y"}, {"c": ROW}),
        ("other code", ABOUT | {"code": "2"}, {"d": ROW}),
        ("later, committed", ABOUT | {"commit": "abd"}, {"b": {"vmq": Figure.of([9.0])}}),
    ):
        one = Results(about, folder)
        one.file = folder / f"{name}.json"
        for row, figures in rows.items():
            one.keep(row, figures)
        files.append(one.file)
    (folder / "foreign.json").write_text('{"machine": {}, "delivery": {}}')
    for second, file in enumerate(files):
        os.utime(file, (second, second))

    known = Results(ABOUT, folder).known()

    assert known == {"a": ROW, "b": {"vmq": Figure.of([9.0])}}
    assert (folder / ".gitignore").read_text() == "*\n"


def test_what_this_run_measured_goes_before_what_was_known(tmp_path) -> None:
    Results(ABOUT, tmp_path).keep("a", ROW)
    again = Results(ABOUT, tmp_path)
    assert again.known() == {"a": ROW}
    again.keep("a", {"vmq": Figure.of([1.0])})
    assert again.known() == {"a": {"vmq": Figure.of([1.0])}}


def test_the_fingerprint_names_machine_versions_and_code() -> None:
    about = fingerprint()

    assert {"cpu", "processors", "memory", "machine", "kernel", "python", "numba", "commit", "code"} <= set(
        about
    )
    assert {"OVS", "DPDK", "QEMU", "iperf3"} <= set(about)
    assert about["machine"] == machine_id()
    assert about["code"] == code()
    assert about["commit"] == commit()


def test_a_program_tells_its_version_or_is_not_installed() -> None:
    assert told_version(sys.executable, r"Python (\S+)") == platform.python_version()
    assert told_version(sys.executable, r"no such word (\S+)") == "none"
    assert told_version("no-such-program", r"(\S+)") == "none"


def test_a_figure_depends_on_what_the_benchmark_takes_from_the_tests(monkeypatch) -> None:
    before = code()
    monkeypatch.setattr(results, "LABS", results.LABS[:1])

    assert code() != before
