# SPDX-License-Identifier: Apache-2.0
"""The configuration file: TOML in, immutable records out, judged whole.

    text ──tomllib──► tables ──a key at a time──► records ──all together──► Config, or ConfigErrors
                               reader.py, forms.py  records.py   judge.py

Each key is declared once, in records.py: its type, its range, its default and, in words, what it is set to.
The same words are the remedy of an error, the text of the JSON Schema (schema.py) and what the manual page is
checked against. What TOML cannot say directly (processor lists, addresses, counts with a unit) has one
reading function in forms.py.

All that is wrong in a file is reported at once, one line each. The host is touched in two places only: `load`
reads the file and asks which processors this process may use, and a capture is opened to see that it can be.
Missing devices and groups, and sockets in use, are found by whoever opens them.
"""

from __future__ import annotations

from vmq.config.forms import cpu_list, cpu_text, mac_bytes, mac_prefix
from vmq.config.reader import load, parse
from vmq.config.records import (
    QUEUE_PAIRS_MAX,
    AnyUplink,
    Config,
    Doctor,
    Engine,
    Memory,
    Packet,
    Pcap,
    Tap,
    Uplink,
    Vm,
    Xdp,
    tables,
)
from vmq.config.schema import schema

__all__ = [
    "QUEUE_PAIRS_MAX",
    "AnyUplink",
    "Config",
    "Doctor",
    "Engine",
    "Memory",
    "Packet",
    "Pcap",
    "Tap",
    "Uplink",
    "Vm",
    "Xdp",
    "cpu_list",
    "cpu_text",
    "load",
    "mac_bytes",
    "mac_prefix",
    "parse",
    "schema",
    "tables",
]
