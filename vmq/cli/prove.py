# SPDX-License-Identifier: Apache-2.0
"""`vmq doctor --prove VM`: what a receive queue of its own is worth to a VM, measured with its own traffic.

The engine sends the VM's frames both ways in turns; this asks it to, shows how far it is, and prints both. The exit
code is 1 if the own queue is slower, or if it cannot be told.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from vmq.cli.client import ask_record
from vmq.errors import ApiError

PAUSE = 0.2
PATIENCE = 60.0  # seconds without another sample
WIDTH = 40  # of the pictures
ANSWERS = {
    "not slower": "its own receive queue is not slower than the default queue",
    "slower": "its own receive queue makes it slower",
    "cannot tell": "it cannot be told",
}


def prove(api: str | None, vm: str, pairs: int, *, as_json: bool) -> int:
    """Measure, and print."""
    ask_record(api, "prove", vm=vm, pairs=pairs)
    proof = _wait(api, quiet=as_json)
    if proof["wrong"]:
        raise ApiError("FAILURE", f"{vm}: {proof['wrong']}", "ask again")
    print(json.dumps(proof, indent=2) if as_json else text(proof))
    return 0 if proof["verdict"]["answer"] == "not slower" else 1


def text(proof: Mapping[str, Any]) -> str:
    """Both ways, as numbers and as bars; then what follows."""
    verdict = proof["verdict"]
    lines = [f"vm {proof['vm']}: {ANSWERS[verdict['answer']]}"]
    most = max(verdict["own"], verdict["plain"])
    for name, words in (("own", "its own receive queue"), ("plain", "the default queue")):
        cost, spread = verdict[name], verdict[f"{name}_spread"]
        bar = "█" * round(WIDTH * cost / most) if most else ""
        lines.append(f"  {words:<22} {cost:8.1f} ± {spread:5.1f} ns a frame  {bar}")
    return "\n".join([*lines, f"  {verdict['why']}"])


def _wait(api: str | None, *, quiet: bool) -> dict[str, Any]:
    """Until it is done; TTYs see how far it is."""
    before, since = -1, time.monotonic()
    while True:
        proof = ask_record(api, "proof")
        if not proof["running"]:
            if sys.stderr.isatty() and not quiet:
                sys.stderr.write("\r" + " " * WIDTH + "\r")
            return proof
        if proof["done"] != before:
            before, since = proof["done"], time.monotonic()
            if sys.stderr.isatty() and not quiet:
                sys.stderr.write(f"\rmeasured {before} of {proof['wanted']} samples")
        elif time.monotonic() - since > PATIENCE:
            raise ApiError("FAILURE", "the engine measures, but gets nowhere", "vmq show processors")
        time.sleep(PAUSE)
