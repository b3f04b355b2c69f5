# SPDX-License-Identifier: Apache-2.0
"""The command line: it prints, and never computes.

    dispatch.py    words → verb → exit code; errors become one line on stderr
    grammar.py     the parser and what several verbs share
    run.py         run, demo            start something in this process
    bench.py       bench                what this machine can do
    check.py       check, schema        the configuration, nothing started; what it and the API look like
    plan.py        plan                 which processor each VM will get, nothing started
    events.py      events               what has happened in a running engine
    snippet.py     snippet              what QEMU or libvirt has to be told
    show.py        show                 a running engine, in tables or JSON
    queues.py      queue                receive queues: list, allocate, complete, set, free
    filters.py     filter               receive filters: list, set, clear, move
    capabilities.py capabilities        what an uplink can do, and what of it is in force
    explain.py     explain              why a frame goes where it goes
    doctor.py      doctor               what is set up wrongly, the evidence and the fix
    completion.py  completion           for the shells
    client.py, table.py                 the API's socket; rows in columns

People run `vmq show` in loops and hooks, so it starts in under 150 ms: the files here import the standard
library only, and what is slow (the configuration, the engine, a compiler) in the branch that needs it. A test
names what must not be there.

Exit codes: 0 done, 1 it failed, 2 the request or the configuration is wrong. With --json errors are JSON too.
"""

from __future__ import annotations

from vmq.cli.dispatch import build_parser, main

__all__ = ["build_parser", "main"]
