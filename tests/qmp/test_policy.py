# SPDX-License-Identifier: Apache-2.0
"""Which addresses become receive filters: by example, and against a model that forgets nothing and hurries never."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.abi.ethernet import mac_number, mac_text
from vmq.config import Vm
from vmq.qmp.lists import RxFilter
from vmq.qmp.policy import Wanted, wanted

OWN = "52:54:00:00:00:01"
FCOE = "0e:fd:00:00:00:00/24"


def mac(last: int, first: str = "0e:fd") -> int:
    return mac_number(f"{first}:00:00:00:{last:02x}")


def vm(**keys: object) -> Vm:
    return Vm(mac=(OWN,), **keys)  # type: ignore[arg-type]


def seen(*unicast: int, main: str = OWN, **keys: object) -> RxFilter:
    return RxFilter("net0", mac_number(main), unicast, **keys)  # type: ignore[arg-type]


def test_the_table_and_the_own_address_are_followed() -> None:
    """The configured address is a filter anyway; a changed own address goes before the table."""
    assert wanted(vm(), seen(mac(1), mac(2))) == Wanted(followed=(mac(1), mac(2)))
    other = "02:00:00:00:00:09"
    assert set(wanted(vm(), seen(mac(1), main=other)).followed) == {mac_number(other), mac(1)}
    assert wanted(vm(learn_max=1), seen(mac(1), main=other)).followed == (mac_number(other),)


def test_what_leaves_the_list_is_followed_no_more() -> None:
    """And what was learned and is listed now leaves with the list too."""
    assert wanted(vm(), seen(mac(2)), followed=[mac(1), mac(2)]).followed == (mac(2),)
    assert wanted(vm(), seen(mac(2)), learned=[mac(2), mac(3)]) == Wanted(
        followed=(mac(2),), learned=(mac(3),)
    )


def test_with_prefixes_only_addresses_within_are_followed() -> None:
    """`learn` says which addresses a VM may add, however they are found."""
    judged = wanted(vm(learn=(FCOE,)), seen(mac(1), mac(2, "0e:fc")))

    assert judged.followed == (mac(1),)
    assert judged.refused == ((mac(2, "0e:fc"), "not within learn"),)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("01:00:5e:00:00:01", "a group address"),
        ("ff:ff:ff:ff:ff:ff", "a group address"),
        ("00:00:00:00:00:00", "the zero address"),
        ("52:54:00:00:00:02", "it is db's"),
    ],
)
def test_what_no_vm_or_another_vm_has_is_refused(address: str, why: str) -> None:
    """In words, in the row of the VM."""
    taken = {mac_number("52:54:00:00:00:02"): "db"}

    assert wanted(vm(), seen(mac_number(address)), taken=taken).refused == ((mac_number(address), why),)
    assert wanted(vm(), seen(main=address), taken=taken).refused == ((mac_number(address), why),)


def test_the_quota_is_of_learned_and_followed_together() -> None:
    """A longer list takes nothing away from those that are there."""
    judged = wanted(
        vm(learn_max=3),
        seen(*(mac(last) for last in range(1, 6))),
        learned=[mac(9)],
        followed=[mac(5)],
    )

    assert judged.followed == (mac(1), mac(5))
    assert judged.learned == (mac(9),)
    assert judged.refused == tuple((mac(last), "learn_max is 3") for last in (2, 3, 4))
    assert wanted(vm(learn_max=1), seen(mac(1)), learned=[mac(8), mac(9)]).followed == ()


def test_when_the_table_has_overflowed_nobody_leaves() -> None:
    """QEMU keeps no entry then: an empty table would take the guest's addresses away in silence."""
    judged = wanted(vm(), seen(overflow=True), followed=[mac(1)])

    assert judged.followed == (mac(1),)
    assert [note.what for note in judged.notes] == [
        "the guest has more addresses than QEMU's table holds: those that it had stay, new ones are missing"
    ]


@pytest.mark.parametrize(
    ("vlan", "vlans", "notes"),
    [
        (None, (), []),
        (None, (0,), []),
        (
            None,
            (0, 5, 6, 9),
            ["the guest expects frames with the tag of VLAN 5-6,9, and its VM port is in no VLAN"],
        ),
        (7, (5,), ["the guest expects frames with the tag of VLAN 5, and its VM port is in VLAN 7"]),
        (7, (0, 7), ["the guest expects the tag of VLAN 7, which its VM port takes off"]),
    ],
)
def test_vlans_that_the_guest_expects_in_vain_are_said(
    vlan: int | None, vlans: tuple[int, ...], notes: list[str]
) -> None:
    """Not obeyed: the operator says in which VLAN a VM port is."""
    judged = wanted(vm(vlan=vlan), seen(vlans=vlans))

    assert [note.what for note in judged.notes] == notes
    assert all(note.remedy for note in judged.notes)
    assert judged.followed == ()


def test_a_promiscuous_device_is_said_and_gets_nothing_more() -> None:
    """A guest cannot ask for its neighbours' frames."""
    judged = wanted(vm(), seen(everything=True))

    assert judged.followed == ()
    assert [note.what for note in judged.notes] == [
        "the guest's device is promiscuous, and gets the frames of its addresses alone"
    ]


ADDRESSES = [
    0,
    mac(1, "01:00"),
    mac_number(OWN),
    *(mac(last) for last in range(4)),
    *(mac(n, "02:00") for n in range(4)),
]
some = st.lists(st.sampled_from(ADDRESSES), max_size=12)
filters = st.lists(
    st.sampled_from([one for one in ADDRESSES if one & 1 == 0 and one]), max_size=6, unique=True
)


def model(
    config: Vm, main: int, table: list[int], learned: list[int], followed: list[int], taken: dict[int, str]
):
    """The rules, one after the other, as the manual has them."""
    fit = [
        one
        for one in dict.fromkeys([main, *table])
        if one & 1 == 0
        and one
        and mac_text(one) not in config.mac
        and one not in taken
        and (not config.learn or mac_text(one).startswith("0e:fd:00"))
    ]
    kept = [one for one in learned if one not in [main, *table]]
    first = [one for one in fit if one == main]
    then = [one for one in fit if one != main and one in [*learned, *followed]]
    last = [one for one in fit if one not in [*first, *then]]
    return list(islice([*first, *then, *last], max(config.learn_max - len(kept), 0))), kept


@given(
    main=st.sampled_from(ADDRESSES),
    table=some,
    learned=filters,
    followed=filters,
    taken=st.sets(st.sampled_from(ADDRESSES), max_size=4),
    learn=st.sampled_from([(), (FCOE,)]),
    learn_max=st.integers(1, 6),
)
def test_the_policy_is_the_model(main, table, learned, followed, taken, learn, learn_max) -> None:
    """Every listed address is followed, refused with a reason, or a filter by configuration; never two of these."""
    config = vm(learn=learn, learn_max=learn_max)
    others = dict.fromkeys(taken - {mac_number(OWN)}, "db")
    followed = [one for one in followed if one not in learned and one != mac_number(OWN)]
    learned = [one for one in learned if one != mac_number(OWN)]
    list_of_qemu = RxFilter("net0", main, tuple(table))

    judged = wanted(config, list_of_qemu, learned=learned, followed=followed, taken=others)

    expected, kept = model(config, main, table, learned, followed, others)
    assert (list(judged.followed), list(judged.learned)) == (sorted(expected), kept)
    assert sorted([*judged.followed, *(one for one, _ in judged.refused)]) == sorted(
        {main, *table} - {mac_number(OWN)}
    )
    assert len(judged.followed) + len(judged.learned) <= max(learn_max, len(kept))
    again = wanted(config, list_of_qemu, learned=judged.learned, followed=judged.followed, taken=others)
    assert (again.followed, again.learned) == (judged.followed, judged.learned), (
        "the same list changes nothing"
    )
    assert sorted(again.refused) == sorted(judged.refused)
