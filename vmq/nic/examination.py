# SPDX-License-Identifier: Apache-2.0
"""All steps on one device, and in the end whether it is as it was found.

A signal that would end the process waits until a step is over (`held`): then everything of that step is taken back. Some drivers
reset the NIC when a program comes or goes, and its link is down for some seconds; that is waited for before the device is compared.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vmq.abi.netdevice import ARPHRD_ETHER
from vmq.errors import ConfigError, HostError
from vmq.nic.device import Nic
from vmq.nic.steps import PASS, STEPS, Result, Trial, failed, passed, result_of

LAST = "as-found"
SETTLE_SECONDS, PAUSE = 10.0, 0.05  # until a link is up again
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Step:
    """What was found, for a person and for JSON."""

    name: str
    verdict: str
    found: str
    remedy: str
    needed: bool

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def in_the_way(self) -> bool:
        """Whether an uplink with direct placement cannot be promised because of it."""
        return self.needed and self.verdict != PASS


def refuse(nic: Nic, *, force: bool) -> None:
    """HostError if nothing may or can be tried on a device."""
    told = nic.link() if nic.index else None
    if told is None:
        raise HostError("vmq nic", f"there is no device {nic.name}", "ip link lists them")
    if told.kind != ARPHRD_ETHER:
        raise HostError("vmq nic", f"{nic.name} is no Ethernet device", "Name a NIC")
    if missing := nic.lacks():
        raise HostError("vmq nic", f"it takes {', '.join(missing)}", "Run it as root")
    now, _ = nic.queues()
    if nic.queue >= now:
        wrong = f"there is no receive queue {nic.queue}: {nic.name} has {now}, counted from 0"
        raise ConfigError("vmq nic --queue", wrong, "Name another, or: ethtool -L")
    if not force and (lead := nic.default_routes()):
        way = (
            "the default route leads"
            if lead == [nic.name]
            else f"the default route leads by {', '.join(lead)}"
        )
        wrong = f"{way} over {nic.name}: some drivers reset the link when a program is attached, and you may lose the host"
        raise HostError("vmq nic", wrong, "Name another device; or be at the console, and say --force")


@contextlib.contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Signals wait until the function that is given here is called: it raises what they would have. Who ignores one, still does."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda now, _: came.append(now))
        for number in SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }

    def look() -> None:
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(128 + came[0])

    try:
        yield look
        look()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def examine(
    nic: Nic,
    *,
    rules: bool,
    look: Callable[[], None] = lambda: None,
    steps: Sequence[Trial] = STEPS,
) -> Iterator[Step]:
    """Each step when it is over, the comparison last. `look` is asked after each whether to go on."""
    found = nic.standing()
    results: dict[str, Result] = {}
    for trial in steps:
        results[trial.name] = result = result_of(trial, nic, results, rules=rules)
        look()
        yield Step(trial.name, *result, trial.needed)
    yield Step(LAST, *_compared(nic, found), True)


def _compared(nic: Nic, found: dict[str, Any]) -> Result:
    until = time.monotonic() + SETTLE_SECONDS
    while (now := nic.standing()) != found and time.monotonic() < until:
        time.sleep(PAUSE)
    other = [name for name, value in found.items() if now.get(name) != value]
    if other:
        return failed(
            f"it is not as it was found: {', '.join(other)}",
            f"See: ip -d link show {nic.name}; ethtool -k {nic.name}",
        )
    return passed("it is as it was found")
