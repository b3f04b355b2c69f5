# SPDX-License-Identifier: Apache-2.0
"""From words to an exit code; what a command imports; errors in one line, or in JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SLOW = ("numpy", "numba", "llvmlite", "pyroute2", "rich", "asyncio", "vmq.dataplane", "vmq.jit", "vmq.daemon")


@pytest.mark.parametrize(
    ("words", "code", "also_not"),
    [
        (["--help"], 0, ("msgspec",)),
        (["--version"], 0, ("msgspec",)),
        (["--print-capabilities"], 0, ("msgspec",)),
        (["show", "--help"], 0, ("msgspec",)),
        (["show", "--api", "/nonexistent"], 1, ("msgspec",)),
        (["show"], 1, ("msgspec",)),
        (["__complete", "vms"], 1, ("msgspec",)),
        (["check", "/nonexistent"], 2, ()),
        (["plan", "/nonexistent"], 2, ()),
        (["doctor", "--help"], 0, ("msgspec",)),
        (["explain", "--mac", "52:54:00:00:00:01"], 1, ("msgspec",)),
        (["queue", "list"], 1, ("msgspec",)),
        (["filter", "set", "3", "mac_destination==52:54:00:00:00:01"], 1, ("msgspec",)),
        (["capabilities"], 1, ("msgspec",)),
        (["capture", "web", "/nonexistent/file"], 1, ("msgspec",)),
        (["metrics"], 1, ("msgspec",)),
    ],
)
def test_commands_of_loops_and_hooks_import_nothing_slow(
    words: list[str], code: int, also_not: tuple[str, ...]
) -> None:
    """design §4: vmq --help and vmq show start in under 150 ms: they import no compiler."""
    program = (
        "import sys\n"
        "from vmq.cli import main\n"
        f"code = main({words!r})\n"
        f"print([name for name in {SLOW + also_not!r} if name in sys.modules], code, file=sys.stderr)\n"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"VMQ_API": "/nonexistent", "PYTHONPATH": ":".join(sys.path)},
    )

    assert ran.stderr.splitlines()[-1] == f"[] {code}"


def test_the_module_runs_as_a_program() -> None:
    """python -m vmq is vmq, and its exit code is the process's."""
    ran = subprocess.run(
        [sys.executable, "-m", "vmq", "nonsense"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )

    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("vmq: argument VERB: invalid choice: 'nonsense'")
    assert ran.stderr.endswith(". Remedy: See vmq --help\n")


def test_version_and_help_are_done(vmq) -> None:
    """They are no errors, and print on stdout."""
    from vmq import __version__

    assert vmq("--version") == (0, f"vmq {__version__}\n", "")
    code, out, err = vmq("--help")
    assert (code, err) == (0, "")
    for verb in (
        "run",
        "demo",
        "bench",
        "check",
        "plan",
        "show",
        "queue",
        "filter",
        "capabilities",
        "capture",
        "measure",
        "metrics",
        "nic",
        "events",
        "explain",
        "doctor",
        "snippet",
        "schema",
        "completion",
    ):
        assert f"\n    {verb} " in out
    assert "__complete" not in out


def test_no_words_are_a_wrong_request(vmq) -> None:
    """Exit 2, one line on stderr."""
    assert vmq() == (2, "", "vmq: the following arguments are required: VERB. Remedy: See vmq --help\n")


def test_a_wrong_option_is_one_line_that_names_the_verb(vmq) -> None:
    """The remedy is the help of the verb, not of everything."""
    assert vmq("show", "--frobnicate") == (
        2,
        "",
        "vmq: unrecognized arguments: --frobnicate. Remedy: See vmq --help\n",
    )
    assert vmq("show", "-w", "0") == (
        2,
        "",
        "vmq show: argument -w/--watch: 0 is not a time in seconds. Remedy: See vmq show --help\n",
    )


def test_verbs_may_be_shortened_while_unambiguous(vmq) -> None:
    """As with ip: `sn` is snippet; `s` might be show, snippet or schema."""
    assert vmq("sn", "--help")[1].startswith("usage: vmq snippet")
    code, _, err = vmq("s")
    assert code == 2
    assert err == "vmq: s is ambiguous: schema, show, snippet. Remedy: See vmq --help\n"
    assert "cap is ambiguous: capabilities, capture" in vmq("cap")[2]


def test_verbs_below_a_verb_may_be_shortened_too(vmq) -> None:
    """`q l` is queue list; `q` alone asks for one; `q f` and `f` have one meaning each."""
    assert vmq("q", "l", "--help")[1].startswith("usage: vmq queue list")
    assert vmq("f", "m", "-h")[1].startswith("usage: vmq filter move")
    code, _, err = vmq("queue")
    assert (code, "the following arguments are required: VERB" in err) == (2, True)
    assert vmq("q", "x")[0] == 2


def test_capabilities_ignore_all_other_words(vmq) -> None:
    """vhost-user "Backend program conventions": --print-capabilities, and the rest is not looked at."""
    code, out, err = vmq("--socket-path=/x", "nonsense", "--print-capabilities")

    assert (code, err) == (0, "")
    assert json.loads(out) == {"type": "net", "features": ["mq", "reconnect"]}


def test_with_json_errors_are_json_too(vmq, tmp_path) -> None:
    """On stderr: stdout is the result's alone."""
    file = tmp_path / "vmq.toml"
    file.write_text("[vm.a]\n[vms]\n", encoding="utf-8")

    code, out, err = vmq("check", str(file), "--json")

    assert (code, out) == (2, "")
    assert json.loads(err) == {
        "errors": [
            {"where": f"{file}: vms", "wrong": "unknown table", "remedy": "Did you mean vm?"},
            {
                "where": f"{file}: [vm.a] mac",
                "wrong": "missing",
                "remedy": 'Set mac to its address, as "52:54:00:00:00:01", or a list of them',
            },
        ]
    }


def test_a_reader_that_leaves_is_no_error() -> None:
    """vmq schema config | head -1 ends quietly."""
    ran = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m vmq schema config | head -1', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
    )

    assert (ran.stdout, ran.stderr) == ("{\n", "")


def test_an_interrupt_is_an_end_not_a_traceback(vmq, monkeypatch) -> None:
    """130 is what shells expect of SIGINT."""
    from vmq.cli import show

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "ask", interrupted)

    assert vmq("show") == (130, "", "")
