# SPDX-License-Identifier: Apache-2.0
"""From QEMU's answer to the receive filters of a VM port: what is followed, told, published, and what not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmq.abi.ethernet import mac_number
from vmq.config import Vm
from vmq.engine import following as module
from vmq.engine.following import Following
from vmq.engine.journal import Journal
from vmq.qmp import RxFilter

FCOE = "0e:fd:00:00:00:00/24"
ONE, TWO = mac_number("0e:fd:00:00:00:01"), mac_number("0e:fd:00:00:00:02")


class FakeFollower:
    """Says what a test says."""

    def __init__(self, path: str, nic: str | None, on_answer: Any, on_trouble: Any) -> None:
        self.path, self.nic, self.answer, self.fail = path, nic, on_answer, on_trouble
        self.trouble: tuple[str, str] | None = None
        self.state = "off"

    def start(self) -> None:
        self.state = "following"

    def close(self) -> None:
        self.state = "off"


class Engine:
    def __init__(self) -> None:
        self.vms: dict[str, FakeVm] = {}
        self.journal = Journal()
        self.published, self.lines = 0, list[str]()

    def publish(self) -> None:
        self.published += 1

    def log(self, line: str) -> None:
        self.lines.append(line)


class Home:
    """Filters of an uplink, some of which quarrel with others."""

    def __init__(self) -> None:
        self.quarrels: set[int] = set()
        self.installed: set[int] = set()

    def follow(self, vm: FakeVm) -> None:
        for mac in self.quarrels & set(vm.macs):
            vm.following.forget(mac, "another queue has a filter for it")
        self.installed = set(vm.macs)


class FakeVm:
    """What `Following` needs of a VM port."""

    def __init__(self, engine: Engine, name: str, number: int, **keys: Any) -> None:
        mac = f"52:54:00:00:00:{number:02x}"
        self.engine, self.name, self.config = engine, name, Vm(mac=(mac,), **keys)
        self.learned: list[int] = []
        self.port, self.home = SimpleNamespace(connection=object()), Home()
        self.following = Following(self, bool)  # type: ignore[arg-type]
        engine.vms[name] = self

    @property
    def macs(self) -> tuple[int, ...]:
        return (*map(mac_number, self.config.mac), *self.following.addresses, *self.learned)

    @property
    def segment(self) -> tuple[str | None, int | None]:
        return self.config.uplink, self.config.vlan

    @property
    def follower(self) -> FakeFollower:
        return cast(FakeFollower, self.following._follower)

    def answer(self, *unicast: int, **keys: Any) -> None:
        self.follower.answer((RxFilter("net0", mac_number(self.config.mac[0]), unicast, **keys),))


@pytest.fixture(autouse=True)
def followers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Follower", FakeFollower)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def started(engine: Engine, name: str = "web", number: int = 1, **keys: Any) -> FakeVm:
    vm = FakeVm(engine, name, number, **({"qmp": f"/r/{name}"} | keys))
    vm.following.start()
    return vm


def test_a_change_of_the_list_is_published_and_told_once(engine: Engine) -> None:
    """The same answer again changes nothing."""
    vm = started(engine)
    vm.answer(ONE)
    vm.answer(ONE)
    vm.answer(TWO)

    assert vm.following.addresses == (TWO,)
    assert engine.published == 2
    assert [(one["event"], one["came"], one["went"]) for one in engine.journal.since(0)] == [
        ("followed", ["0e:fd:00:00:00:01"], []),
        ("followed", ["0e:fd:00:00:00:02"], ["0e:fd:00:00:00:01"]),
    ]


def test_an_address_that_quarrels_with_a_filter_is_refused(engine: Engine) -> None:
    """It is tried again with every answer: what stands in its way may have gone."""
    vm = started(engine)
    vm.answer(ONE)
    vm.home.quarrels = {TWO}
    vm.answer(ONE, TWO)

    assert vm.home.installed == set(vm.macs)
    assert vm.following.addresses == (ONE,)
    assert vm.following.wanted.refused == ((TWO, "another queue has a filter for it"),)

    vm.home.quarrels = set()
    vm.answer(ONE, TWO)

    assert vm.home.installed == {mac_number("52:54:00:00:00:01"), ONE, TWO}


def test_without_qmp_nothing_is_followed(engine: Engine) -> None:
    """And nothing is shown."""
    vm = started(engine, qmp=None)

    assert (vm.following._follower, vm.following.addresses, vm.following.row()) == (None, (), None)


def test_when_the_front_end_goes_its_addresses_are_free(engine: Engine) -> None:
    """Another VM that asks for one is given it with the next answer."""
    web, db = started(engine), started(engine, "db", 2)
    web.answer(ONE)
    db.answer(ONE)
    refused = db.following.row()
    web.following.close()
    db.answer(ONE)

    assert refused is not None
    assert refused["refused"] == [{"mac": "0e:fd:00:00:00:01", "why": "it is web's"}]
    assert web.following.addresses == ()
    assert db.following.addresses == (ONE,)


def test_a_neighbour_of_another_segment_has_no_say(engine: Engine) -> None:
    """VMs of one uplink and VLAN are one segment."""
    web, db = started(engine), started(engine, "db", 2, vlan=5)
    web.answer(ONE)
    db.answer(ONE, mac_number("52:54:00:00:00:01"))

    assert set(db.following.addresses) == {ONE, mac_number("52:54:00:00:00:01")}


def test_what_was_learned_and_is_listed_leaves_with_the_list(engine: Engine) -> None:
    """One address is one receive filter, however it was found."""
    vm = started(engine, learn=(FCOE,))
    vm.learned = [ONE, TWO]
    vm.answer(ONE)

    assert (vm.following.addresses, vm.learned) == ((ONE,), [TWO])
    assert engine.published == 0, "the receive filters are the same"

    vm.answer()

    assert (vm.following.addresses, vm.learned) == ((), [TWO])
    assert engine.published == 1


def test_another_configuration_is_judged_at_once(engine: Engine) -> None:
    """A reload publishes itself."""
    vm = started(engine)
    vm.answer(ONE, mac_number("02:00:00:00:00:09"))
    vm.config = Vm(mac=vm.config.mac, qmp="/r/web", learn=(FCOE,))
    vm.following.reconfigure()

    assert vm.following.addresses == (ONE,)
    assert engine.published == 1


def test_an_address_that_is_configured_for_another_vm_is_given_up(engine: Engine) -> None:
    """What the operator says goes before what a guest says."""
    vm, address = started(engine), mac_number("52:54:00:00:00:02")
    vm.answer(address)
    FakeVm(engine, "db", 2)
    vm.following.reconfigure()

    assert vm.following.addresses == ()
    assert vm.following.wanted.refused == ((address, "it is db's"),)


@pytest.mark.parametrize("keys", [{"qmp": "/r/other"}, {"qmp": "/r/web", "qmp_nic": "net1"}])
def test_another_socket_or_device_is_followed_anew(engine: Engine, keys: dict[str, str]) -> None:
    """What the old one said is nothing."""
    vm = started(engine)
    vm.answer(ONE)
    old = vm.follower
    vm.config = Vm(mac=vm.config.mac, **keys)  # type: ignore[arg-type]
    vm.following.reconfigure()

    assert (old.state, vm.follower.state) == ("off", "following")
    assert (vm.follower.path, vm.follower.nic) == (keys["qmp"], keys.get("qmp_nic"))
    assert vm.following.addresses == ()


def test_qmp_begins_and_ends_by_reload(engine: Engine) -> None:
    """Only while a front-end is connected."""
    vm = started(engine, qmp=None)
    without, vm.config = vm.config, Vm(mac=vm.config.mac, qmp="/r/web")
    vm.port.connection = None
    vm.following.reconfigure()
    assert vm.following._follower is None
    vm.port.connection = object()
    vm.following.reconfigure()
    vm.answer(ONE)
    vm.config = without
    vm.following.reconfigure()

    assert (vm.following._follower, vm.following.addresses) == (None, ())


def test_a_device_that_cannot_be_told_is_said_and_takes_nothing_away(engine: Engine) -> None:
    """The remedy is a key."""
    vm = started(engine)
    vm.answer(ONE)
    others = (RxFilter("net1", TWO), RxFilter("net2", TWO))
    vm.follower.answer(others)
    said = vm.following.trouble

    assert said == (
        "which network device of QEMU is this VM port's cannot be said: there are net1, net2",
        'set qmp_nic to the "id" of the device',
    )
    assert vm.following.addresses == (ONE,)

    vm.follower.answer((*others, RxFilter("net0", mac_number("52:54:00:00:00:01"))))

    assert vm.following.trouble is None
    assert not vm.following.addresses


def test_trouble_is_logged_and_what_the_guest_expects_in_vain_is_none(engine: Engine) -> None:
    """A bridge in the guest is no error; a socket that cannot be asked is one."""
    vm = started(engine)
    vm.answer(everything=True)
    row, before = vm.following.row(), vm.following.trouble
    vm.follower.trouble = ("/r/web: QEMU has closed the connection", "do something")
    vm.follower.fail(*vm.follower.trouble)

    assert row is not None
    assert "promiscuous" in row["notes"][0]["what"]
    assert before is None
    assert vm.following.trouble == vm.follower.trouble
    assert engine.lines == ["vm web: qmp /r/web: QEMU has closed the connection. Remedy: do something"]


def test_a_guest_does_not_fill_the_journal(engine: Engine) -> None:
    """`fresh` says how often something is said; the filters change all the same."""
    vm = FakeVm(engine, "web", 1, qmp="/r/web")
    vm.following = Following(vm, set[str]().__contains__)  # type: ignore[arg-type]
    vm.following.start()
    vm.answer(ONE)
    vm.follower.fail("what", "remedy")

    assert (engine.journal.since(0), engine.lines) == ([], [])
    assert (vm.following.addresses, engine.published) == ((ONE,), 1)


def test_the_row_shows_the_list_and_what_became_of_it(engine: Engine) -> None:
    """Bounded, however long the guest's list is."""
    vm = started(engine, learn_max=1)
    assert vm.following.row() == {
        "path": "/r/web",
        "state": "following",
        "nic": None,
        "followed": [],
        "refused": [],
        "multicast": [],
        "vlans": "",
        "notes": [],
    }

    groups = tuple(mac_number(f"33:33:00:00:00:{last:02x}") for last in range(200))
    vm.answer(ONE, TWO, multicast=groups, vlans=(0, 5, 6), overflow=True)
    row = vm.following.row()

    assert row is not None
    assert (row["nic"], row["vlans"]) == ("net0", "0,5-6")
    assert row["followed"] == ["0e:fd:00:00:00:01"]
    assert row["refused"] == [{"mac": "0e:fd:00:00:00:02", "why": "learn_max is 1"}]
    assert len(row["multicast"]) == module.SHOWN_MAX
    assert len(row["notes"]) == 2
    assert all(note["what"] and note["remedy"] for note in row["notes"])
