# SPDX-License-Identifier: Apache-2.0
"""From one configuration to another: the right actions, in an order in which each can be done."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.configs import configs
from vmq.config import Config, Memory, Pcap, Tap, Vm
from vmq.config.records import Packet, Xdp
from vmq.engine.plan import (
    Action,
    AddVm,
    ChangeUplink,
    ChangeVm,
    CloseUplink,
    OpenUplink,
    PrepareUplink,
    RemoveVm,
    claims,
    excludes,
    holds,
    lasting,
    needs,
    plan,
    same_wire,
)

FOLDER = Path("/run/vmq")
A = Vm(socket="/run/a", mac=("52:54:00:00:00:01",))
B = Vm(socket="/run/b", mac=("52:54:00:00:00:02",))
LAN = Memory(count=0)


def with_(vm: Vm, **keys: object) -> Vm:
    return Vm(**{key: getattr(vm, key) for key in vm.__struct_fields__} | keys)


def config(uplinks: dict | None = None, **vms: Vm) -> Config:
    return Config(uplinks=uplinks or {}, vms=vms)


def follow(old: Config, actions: tuple[Action, ...]) -> Config:
    """Do the actions on paper; fails where the engine would."""
    uplinks, vms = dict(old.uplinks), dict(old.vms)
    prepared = {}
    for action in actions:
        match action:
            case PrepareUplink(name, one):
                assert not [other for other in uplinks.values() if excludes(other, one)]
                prepared[name] = one
            case OpenUplink(name, one):
                assert name not in uplinks
                assert prepared.pop(name, one) == one
                assert not needs(one) & set().union(*(holds(other) for other in uplinks.values()))
                uplinks[name] = one
            case CloseUplink(name):
                assert not [vm for vm in vms.values() if vm.uplink == name], "a VM still uses it"
                del uplinks[name]
            case ChangeUplink(name, one):
                assert same_wire(uplinks[name], one)
                uplinks[name] = one
            case AddVm(name, one):
                assert name not in vms
                assert not claims(one) & set().union(*(claims(other) for other in vms.values()))
                assert one.uplink is None or one.uplink in uplinks
                vms[name] = one
            case ChangeVm(name, one):
                assert lasting(vms[name]) == lasting(one)
                vms[name] = one
            case RemoveVm(name):
                del vms[name]
    assert prepared == {}
    return Config(uplinks=uplinks, vms=vms)


FILES = st.sampled_from((None, "/x.pcap", "/y.pcap"))
WIRES = st.one_of(
    st.builds(Tap, device=st.sampled_from(("eth7", "eth8"))),
    st.builds(Packet, device=st.sampled_from(("eth7", "eth8")), promiscuous=st.booleans()),
    st.builds(Xdp, device=st.sampled_from(("eth7", "eth8")), promiscuous=st.booleans()),
    st.builds(Pcap, read=FILES, write=FILES, repeat=st.integers(1, 2)),
)


@st.composite
def wires(draw: st.DrawFn) -> Config:
    """Uplinks that want the same devices and files as those of another such configuration, each with a VM."""
    uplinks: dict[str, Tap | Packet | Xdp | Pcap] = {}
    for name in draw(st.permutations(("lan", "wan", "man")))[: draw(st.integers(0, 3))]:
        one = draw(WIRES)
        if not any(needs(one) & holds(other) or holds(one) & needs(other) for other in uplinks.values()):
            uplinks[name] = one
    vms = {name: with_(A, socket=f"/run/{name}", uplink=name) for name in uplinks}
    return Config(uplinks=uplinks, vms=vms)


@given(configs(FOLDER))
def test_no_change_is_no_action(one: Config):
    """style: the plan for no change is empty."""
    assert plan(one, one) == ()
    assert plan(one, Config(uplinks=dict(one.uplinks), vms=dict(one.vms))) == ()


@given(configs(FOLDER), configs(FOLDER))
def test_the_plan_leads_there_and_every_step_can_be_done(old: Config, new: Config):
    """No socket, filter or device is had twice; an uplink is there while a VM uses it."""
    assert follow(old, plan(old, new)) == new


@given(wires(), wires())
def test_no_device_is_had_twice_and_no_file_is_read_while_it_is_written(old: Config, new: Config):
    """Whatever kinds follow one another."""
    assert follow(old, plan(old, new)) == new


@given(configs(FOLDER), configs(FOLDER))
def test_who_stays_the_same_is_left_alone(old: Config, new: Config):
    """A VM that is equal in both, on an uplink that is, has no action."""
    same = {
        name
        for name, vm in new.vms.items()
        if old.vms.get(name) == vm and old.uplinks.get(vm.uplink or "") == new.uplinks.get(vm.uplink or "")
    }
    assert (
        not {
            action.name
            for action in plan(old, new)
            if not isinstance(action, OpenUplink | CloseUplink | ChangeUplink)
        }
        & same
    )


def test_what_may_fail_comes_before_what_is_gone():
    old, new = config(a=A), config({"lan": LAN}, b=with_(B, uplink="lan"))
    assert plan(old, new) == (
        OpenUplink("lan", LAN),
        AddVm("b", with_(B, uplink="lan")),
        RemoveVm("a"),
    )


def test_filters_change_under_a_connected_guest():
    for keys in (
        {"mac": ("52:54:00:00:00:07",)},
        {"vlan": 5},
        {"mtu": 9000},
        {"processor": 1},
        {"learn_max": 2},
    ):
        new = with_(A, **keys)
        assert plan(config(a=A), config(a=new)) == (ChangeVm("a", new),)


def test_other_processors_of_an_uplink_disturb_nobody():
    """The uplink stays open; its VMs move if they must, others are left alone."""
    a, b = with_(A, uplink="lan"), B
    for keys in ({"processors": (1, 2)}, {"numa_node": 1}, {"queues": 1}, {"link_local": "forward"}):
        new = Memory(count=0, **keys)
        assert plan(config({"lan": LAN}, a=a, b=b), config({"lan": new}, a=a, b=b)) == (
            ChangeUplink("lan", new),
            ChangeVm("a", a),
        )


def test_what_cannot_change_under_a_guest_replaces_the_port():
    for keys in ({"socket": "/run/other"}, {"mode": "connect"}, {"queue_pairs": 2}):
        new = with_(A, **keys)
        assert plan(config(a=A), config(a=new)) == (RemoveVm("a"), AddVm("a", new))


def test_a_renamed_vm_gets_the_socket_of_its_old_name():
    """Not before that is free."""
    assert plan(config(a=A), config(z=A)) == (RemoveVm("a"), AddVm("z", A))


def test_two_vms_swap_their_sockets():
    new = config(a=with_(A, socket=B.socket), b=with_(B, socket=A.socket))
    kinds = [type(action) for action in plan(config(a=A, b=B), new)]
    assert kinds == [RemoveVm, RemoveVm, AddVm, AddVm]


def test_a_changed_uplink_is_closed_before_it_is_opened_again():
    """The same TAP cannot be open twice; its VMs come back afterwards."""
    vm, old, new = with_(A, uplink="lan"), Tap(device="tap0"), Tap(device="tap0", mtu=1400)
    assert plan(config({"lan": old}, a=vm), config({"lan": new}, a=vm)) == (
        RemoveVm("a"),
        CloseUplink("lan"),
        OpenUplink("lan", new),
        AddVm("a", vm),
    )


def test_what_can_be_opened_beside_the_old_uplink_is_opened_before_anybody_is_disturbed():
    """Another device, and packet sockets on the same one; it serves nobody yet."""
    vm = with_(A, uplink="lan")
    for old, new in (
        (LAN, Memory(count=0, mtu=1400)),
        (Tap(device="tap0"), Tap(device="tap1")),
        (Packet(device="eth7"), Packet(device="eth7", mtu=1400)),
        (Packet(device="eth7"), Xdp(device="eth7")),
        (Xdp(device="eth7"), Packet(device="eth7")),
    ):
        assert plan(config({"lan": old}, a=vm), config({"lan": new}, a=vm)) == (
            PrepareUplink("lan", new),
            RemoveVm("a"),
            CloseUplink("lan"),
            OpenUplink("lan", new),
            AddVm("a", vm),
        )
    new = Packet(device="tap0")  # which goes with its TAP
    assert plan(config({"lan": Tap(device="tap0")}), config({"lan": new}))[0] == CloseUplink("lan")


def test_a_renamed_uplink_waits_for_its_device():
    """So does a capture that is written."""
    for one in (Tap(device="tap0"), Xdp(device="eth7"), Pcap(write="/tmp/x.pcap")):
        old, new = config({"lan": one}), config({"wan": one}, a=with_(A, uplink="wan"))
        assert plan(old, new) == (
            CloseUplink("lan"),
            OpenUplink("wan", one),
            AddVm("a", with_(A, uplink="wan")),
        )


def test_a_device_has_one_program_at_a_time():
    """So an xdp uplink that changes is closed before it is opened again."""
    old, new = Xdp(device="eth7"), Xdp(device="eth7", zero_copy="off")
    assert plan(config({"lan": old}), config({"lan": new})) == (CloseUplink("lan"), OpenUplink("lan", new))


def test_a_capture_is_read_when_its_writer_is_closed():
    """By then all stands in it; under the name of its writer, or another."""
    old, new = Pcap(write="/x.pcap"), Pcap(read="/x.pcap")
    assert plan(config({"lan": old}), config({"lan": new})) == (CloseUplink("lan"), OpenUplink("lan", new))
    assert plan(config({"lan": old}), config({"wan": new})) == (CloseUplink("lan"), OpenUplink("wan", new))
    both = Pcap(read="/y.pcap", write="/x.pcap")
    swapped = Pcap(read="/x.pcap", write="/y.pcap")
    assert plan(config({"lan": both}), config({"lan": swapped})) == (
        CloseUplink("lan"),
        OpenUplink("lan", swapped),
    )


def test_a_capture_that_was_read_is_nobody_s():
    """It lies in memory: another may read or write the file beside it."""
    old = Pcap(read="/x.pcap")
    for new in (Pcap(read="/x.pcap", repeat=2), Pcap(write="/x.pcap")):
        assert plan(config({"lan": old}), config({"lan": new})) == (
            PrepareUplink("lan", new),
            CloseUplink("lan"),
            OpenUplink("lan", new),
        )
        assert plan(config({"lan": old}), config({"wan": new})) == (
            OpenUplink("wan", new),
            CloseUplink("lan"),
        )


def test_a_device_and_a_file_of_one_name_are_two_things():
    assert not excludes(Tap(device="x"), Pcap(write="x"))
