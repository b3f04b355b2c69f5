# SPDX-License-Identifier: Apache-2.0
"""What is looked at or tried, one small function each, and what follows from it.

        passed   it is so, or it was done: `found` says what
        failed   it is not so, or was refused: `remedy` says what to do
        skipped  it was not tried: `found` says why

A function sees the device and the results before its own. Whatever the kernel refuses with an error is `failed` where it is
tried (`result_of`). `needed` are those without which an xdp uplink with direct placement does not work on this device; the others are
prepared for what vmq does not do yet, or only make it faster.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vmq import linux
from vmq.abi.ethernet import mac_number
from vmq.config import cpu_text
from vmq.direct.socket import CHUNK
from vmq.engine.pinned import MTU_MAX
from vmq.errors import HostError, VmqError
from vmq.nic.device import Nic
from vmq.uplink.xdp_device import STRAIGHT

PASS, FAIL, SKIP = "pass", "fail", "skip"
TRIED = "02:00:00:00:00:01"  # locally administered: nobody's
NEVER = "Nothing: the driver decides it. vmq works without"


class Result(NamedTuple):
    verdict: str
    found: str
    remedy: str = ""


Results = Mapping[str, Result]


class Trial(NamedTuple):
    """A step that is to be taken. `rules`: only if the owner allows a rule in the NIC's table."""

    name: str
    needed: bool
    take: Callable[[Nic, Results], Result]
    remedies: Mapping[int, str] = {}
    rules: bool = False


def passed(found: str) -> Result:
    return Result(PASS, found)


def failed(found: str, remedy: str) -> Result:
    return Result(FAIL, found, remedy)


def skipped(why: str) -> Result:
    return Result(SKIP, why)


REMEDIES = {
    errno.EPERM: "Run it with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF",
    errno.EBUSY: "Stop who uses it: vmq, or another program with an AF_XDP socket on this queue (ss --xdp)",
    errno.EEXIST: "Take the other program off: ip link set NAME xdp off",
    errno.ENOBUFS: "Raise the limit of locked memory (ulimit -l, LimitMEMLOCK), or run it with CAP_IPC_LOCK",
    errno.EAFNOSUPPORT: "Use a kernel with CONFIG_XDP_SOCKETS",
    errno.ENETDOWN: "Bring it up: ip link set NAME up",
}
NATIVE = {
    errno.EOPNOTSUPP: 'Another driver or a newer kernel; until then mode = "generic" with prepared = true, or kind = "packet"',
    errno.EINVAL: "See the kernel's log (dmesg): drivers say there what is in the way, mostly the MTU, LRO or the number of queues",
    errno.ERANGE: "A smaller MTU, here or at its other end",
    errno.ENOSPC: "More receive queues than its other end has transmit queues: ethtool -L NAME",
}  # fmt: skip
ZERO_COPY = {
    errno.EOPNOTSUPP: NEVER,
    errno.EINVAL: "See the kernel's log (dmesg): mostly the MTU, or the size of the NIC's rings (ethtool -g NAME)",
    errno.ENOMEM: "More memory, or more free pages of 2 MiB: sysctl vm.nr_hugepages=N",
    errno.ENOSPC: "More free pages of 2 MiB: sysctl vm.nr_hugepages=N",
}


def driver(nic: Nic, _: Results) -> Result:
    said, told = nic.driver(), nic.link()
    if told is not None and told.virtual not in STRAIGHT:
        found = f"a {told.virtual}: programs see its frames behind the kernel's own work on them"
        return failed(found, "Name the NIC below it")
    if said is None or not said.name:
        return skipped("it has no driver that says its name")
    words = ", ".join(word for word in (said.name, said.bus, said.firmware) if word and word != "N/A")
    return passed(f"{words}; an uplink on it needs prepared = true" if told and told.virtual else words)


def link(nic: Nic, _: Results) -> Result:
    told = nic.link()
    if told is None:
        return failed("it is gone", "Bring it back")
    if not told.up:
        return failed("it is switched off", "ip link set NAME up")
    if told.state not in ("up", "unknown"):
        return failed(f"it is {told.state}", "Check the cable, and what is at its other end")
    return passed(told.state)


def mtu(nic: Nic, _: Results) -> Result:
    told = nic.link()
    now = told.mtu if told else 0
    if now > MTU_MAX:
        found = f"{now}: more than a buffer of direct placement holds, {MTU_MAX}"
        return failed(found, f"ip link set NAME mtu {MTU_MAX}, or an mtu of the VMs up to that")
    return passed(f"{now} of at most {MTU_MAX}")


def queues(nic: Nic, _: Results) -> Result:
    now, most = nic.queues()
    return passed(f"{now}, at most {most}; tried is queue {nic.queue}")


def interrupts(nic: Nic, _: Results) -> Result:
    served = nic.interrupts()
    if not served:
        return skipped("it has no interrupts of its own that the host tells")
    each = (f"{irq} on {cpu_text(cpus) if cpus else 'unknown'}" for irq, cpus in sorted(served.items()))
    return passed(f"{len(served)}: {', '.join(each)}")


def programs(nic: Nic, _: Results) -> Result:
    told = nic.link()
    there = told.programs if told else {}
    if there:
        each = ", ".join(f"{one} ({where})" for where, one in there.items())
        return failed(
            f"another program is on it, id {each}", "Stop who put it there, or: ip link set NAME xdp off"
        )
    return passed("no other program is on it")


def native(nic: Nic, so_far: Results) -> Result:
    if so_far["programs"].verdict != PASS:
        return skipped("another program is on it")
    with nic.passing("native"):
        return passed("a program was attached to the driver, and taken off")


def generic(nic: Nic, so_far: Results) -> Result:
    if so_far["native"].verdict != FAIL:
        return skipped(
            "the driver takes programs" if so_far["native"].verdict == PASS else so_far["native"].found
        )
    with nic.passing("generic"):
        return passed("the kernel runs a program behind the driver: slower, and with unfinished checksums")


def redirect(nic: Nic, _: Results) -> Result:
    said = nic.abilities()
    if said is None:
        return skipped("this kernel cannot tell; Linux 6.3 and later can")
    if "redirect" not in said:
        return failed("the driver says that its programs cannot redirect", "Another driver or a newer kernel")
    return passed("the driver says that its programs redirect; not tried")


def transmit(nic: Nic, _: Results) -> Result:
    said = nic.abilities()
    if said is None:
        return skipped("this kernel cannot tell; Linux 6.3 and later can")
    if "ndo-xmit" not in said:
        return failed("the driver says that it takes no redirected frames now", NEVER)
    return passed("the driver says that it takes redirected frames; not tried")


def copy(nic: Nic, so_far: Results) -> Result:
    mode = next((one for one in ("native", "generic") if so_far[one].verdict == PASS), None)
    if mode is None:
        return skipped("no program can be on it")
    nic.bind(mode, zero_copy=False, chunk=CHUNK)
    return passed(
        f"a socket was bound to queue {nic.queue}, its buffers anywhere ({mode} program); no frame was sent"
    )


def zero_copy(nic: Nic, so_far: Results) -> Result:
    return _zero_copy(nic, so_far, linux.PAGE, huge=False)


def zero_copy_guest(nic: Nic, so_far: Results) -> Result:
    return _zero_copy(nic, so_far, CHUNK, huge=False)


def zero_copy_huge(nic: Nic, so_far: Results) -> Result:
    if not nic.huge_pages():
        return skipped("no page of 2 MiB is free")
    return _zero_copy(nic, so_far, CHUNK, huge=True)


def _zero_copy(nic: Nic, so_far: Results, chunk: int, *, huge: bool) -> Result:
    if so_far["native"].verdict != PASS:
        return skipped("no program can be on the driver")
    said = nic.abilities()
    hint = "" if said is None or "xsk-zerocopy" in said else "; the driver does not say that it can"
    try:
        bound = nic.bind("native", zero_copy=True, chunk=chunk, huge=huge)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{hint}") from error
    if not bound:
        return failed("a socket was bound, but it copies", NEVER)
    return passed(f"a socket was bound to queue {nic.queue}; that frames arrive was not tried")


def tags(nic: Nic, _: Results) -> Result:
    switched = nic.leave_tags_in()
    if switched:
        return passed(f"they can be left in frames; {', '.join(switched)} was off for a moment")
    return passed("they are left in frames")


def ntuple(nic: Nic, _: Results) -> Result:
    try:
        with nic.choosing() as was:
            count = nic.rules()
    except HostError as error:
        return failed(error.wrong, NEVER)
    return passed(f"{'on' if was else 'can be switched on'}; {count} in its table")


def rule(nic: Nic, so_far: Results) -> Result:
    if so_far["ntuple"].verdict != PASS:
        return skipped("it has no table of rules")
    with nic.choosing():
        place, stood = nic.try_rule(mac_number(TRIED))
    if stood != (mac_number(TRIED), nic.queue):
        return failed(f"the rule at {place} was read with another address or queue", NEVER)
    return passed(
        f"{TRIED} to queue {nic.queue} stood at {place}, and was deleted; that it steers was not tried"
    )


def pinned(nic: Nic, _: Results) -> Result:
    most = nic.may_pin()
    if most is not None:
        found = f"this process may pin {most >> 20} MiB; direct placement pins all memory of a guest"
        return failed(found, "CAP_IPC_LOCK, LimitMEMLOCK=infinity of the service, or ulimit -l unlimited")
    return passed("this process may pin all memory")


def huge_pages(nic: Nic, _: Results) -> Result:
    free = nic.huge_pages()
    if not free:
        return failed("no page of 2 MiB is free", "For zero-copy only: sysctl vm.nr_hugepages=N")
    return passed(f"{free} pages of 2 MiB are free")


def iommu(nic: Nic, _: Results) -> Result:
    hardware, group, kind = nic.iommu()
    if not hardware:
        return skipped("it has no hardware behind it")
    if not group:
        return passed("none is between it and memory")
    return passed(f"group {group}, {kind or 'of an unknown kind'}")


STEPS = (
    Trial("driver", True, driver),
    Trial("link", True, link),
    Trial("mtu", True, mtu),
    Trial("queues", True, queues),
    Trial("interrupts", False, interrupts),
    Trial("programs", True, programs),
    Trial("native", True, native, NATIVE),
    Trial("generic", False, generic),
    Trial("redirect", True, redirect),
    Trial("copy", True, copy),
    Trial("zero-copy", False, zero_copy, ZERO_COPY),
    Trial("zero-copy-guest", False, zero_copy_guest, ZERO_COPY),
    Trial("zero-copy-huge", False, zero_copy_huge, ZERO_COPY),
    Trial("transmit", False, transmit),
    Trial("tags", True, tags),
    Trial("ntuple", False, ntuple, {errno.EOPNOTSUPP: NEVER}),
    Trial("rule", False, rule, {errno.EOPNOTSUPP: NEVER, errno.EINVAL: NEVER}, rules=True),
    Trial("pinned", True, pinned),
    Trial("huge-pages", False, huge_pages),
    Trial("iommu", False, iommu),
)


def result_of(trial: Trial, nic: Nic, so_far: Results, *, rules: bool) -> Result:
    """Take a step. What the host refuses is its result, with the remedy for that refusal."""
    if trial.rules and not rules:
        return skipped("it would add a rule to the NIC's table for a moment: --rules allows it")
    try:
        result = trial.take(nic, so_far)
    except OSError as error:
        remedy = {**REMEDIES, **trial.remedies}.get(error.errno or 0, "See the kernel's log (dmesg)")
        result = failed(f"the kernel refuses it: {error.strerror or error}", remedy)
    except VmqError as error:
        result = failed(error.wrong, error.remedy)
    return result._replace(remedy=result.remedy.replace("NAME", nic.name))
