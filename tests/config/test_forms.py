# SPDX-License-Identifier: Apache-2.0
"""What TOML cannot say directly: lists of processors, addresses, prefixes, counts with a unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.config.forms import FORMS, cpu_list, cpu_text, mac_bytes, mac_prefix, shown


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), ("8,1-2", (1, 2, 8)), (" 1 , 1-2 ", (1, 2)), ("5-5", (5,))],
)
def test_cpu_list_reads_the_kernels_list_format(text: str, numbers: tuple[int, ...]) -> None:
    """cpuset(7) "List format"."""
    assert cpu_list(text) == numbers


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", '"" is not a list of processors'),
        ("1,", '"1," is not a list of processors'),
        ("-1", '"-1" is not a list of processors'),
        ("a-b", '"a-b" is not a list of processors'),
        ("1-2-3", '"1-2-3" is not a list of processors'),
        ("١", '"١" is not a list of processors'),
        ("3-1", '"3-1" is not a range of processors'),
        ("0-99999", '"0-99999" is not a range of processors'),
    ],
)
def test_cpu_list_refuses_what_the_kernel_would(text: str, wrong: str) -> None:
    """A list that cannot be read is quoted, and no list is long enough to fill the memory."""
    with pytest.raises(ValueError) as refused:
        cpu_list(text)

    assert str(refused.value) == wrong


@given(st.sets(st.integers(0, 8191), min_size=1))
def test_cpu_text_is_the_opposite_of_cpu_list(numbers: set[int]) -> None:
    """What is shown can be written into the file."""
    assert cpu_list(cpu_text(numbers)) == tuple(sorted(numbers))


def test_cpu_text_joins_neighbours() -> None:
    """The kernel's own rendering: ranges where there are any."""
    assert cpu_text([8, 0, 1, 2, 3, 10]) == "0-3,8,10"
    assert cpu_text([]) == ""


def test_mac_bytes_reads_both_separators_and_cases() -> None:
    """Windows writes dashes, and upper case is common."""
    assert mac_bytes("52:54:00:AB:cd:01") == bytes.fromhex("525400abcd01")
    assert mac_bytes("52-54-00-ab-cd-01") == bytes.fromhex("525400abcd01")


@pytest.mark.parametrize(
    "text", ["", "52:54:00:00:00", "52:54:00:00:00:01:02", "52:54-00:00:00:01", "5254.0000.0001"]
)
def test_mac_bytes_refuses_what_is_no_address(text: str) -> None:
    """Six pairs of digits, one separator."""
    with pytest.raises(ValueError) as refused:
        mac_bytes(text)

    assert str(refused.value) == f'"{text}" is not a MAC address'


def test_mac_bytes_refuses_a_group_address() -> None:
    """A multicast address names no single VM; IEEE 802 §8.2.2 Universal addresses: the I/G bit."""
    with pytest.raises(ValueError, match="is a multicast address, which no VM can own"):
        mac_bytes("ff:ff:ff:ff:ff:ff")


def test_mac_prefix_is_an_address_and_a_length() -> None:
    """The FCoE prefixes of the design."""
    assert mac_prefix("0e:fc:00:00:00:00/24") == (bytes.fromhex("0efc00000000"), 24)
    assert mac_prefix("52:54:00:00:00:01/48") == (bytes.fromhex("525400000001"), 48)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0e:fc:00:00:00:00", "is not a prefix of MAC addresses"),
        ("0e:fc:00/24", "is not a prefix of MAC addresses"),
        ("0e:fc:00:00:00:00/x", "is not a prefix of MAC addresses"),
        ("0e:fc:00:00:00:00/0", "has a length that is not from 1 to 48"),
        ("0e:fc:00:00:00:00/49", "has a length that is not from 1 to 48"),
        ("0e:fc:00:00:00:01/24", "has bits set behind its first 24"),
        ("01:10:18:00:00:00/24", "is a multicast address"),
    ],
)
def test_mac_prefix_refuses_what_would_match_nothing_or_everything(text: str, wrong: str) -> None:
    """A prefix with bits behind it is a slip: it looks narrower than it is."""
    with pytest.raises(ValueError) as refused:
        mac_prefix(text)

    assert wrong in str(refused.value)


@pytest.mark.parametrize(
    ("key", "written", "held"),
    [
        ("processors", "0-1", (0, 1)),
        ("mac", "52:54:00:00:00:0A", ("52:54:00:00:00:0a",)),
        ("mac", ["52-54-00-00-00-01", "52:54:00:00:00:02"], ("52:54:00:00:00:01", "52:54:00:00:00:02")),
        ("learn", "0E:FC:00:00:00:00/24", ("0e:fc:00:00:00:00/24",)),
        ("learn", [], ()),
        ("ignore", "d13", ("D13",)),
        ("ignore", ["D01", "d34"], ("D01", "D34")),
        ("accept", [], ()),
        ("accept", "unknown", ("unknown",)),
        ("accept", ["unknown", "broadcast"], ("broadcast", "unknown")),
        ("device", "eth0", "eth0"),
        ("repeat", True, 0),
        ("repeat", False, 1),
        ("repeat", 7, 7),
        ("rate", "1M", 1_000_000),
        ("rate", "20k", 20_000),
        ("rate", 5, 5),
    ],
)
def test_forms_make_the_canonical_value(key: str, written: object, held: object) -> None:
    """One meaning, one value: two ways to write it plan no change."""
    assert FORMS[key][0](written) == held
    assert type(FORMS[key][0](written)) is type(held)


@pytest.mark.parametrize(
    ("key", "written", "wrong"),
    [
        ("mac", "00:00:00:00:00:00", '"00:00:00:00:00:00" is the zero address, which no VM can own'),
        ("mac", ["52:54:00:00:00:01", "52-54-00-00-00-01"], '"52:54:00:00:00:01" is there twice'),
        ("processors", 1, "1 is not a text"),
        ("ignore", "D35", '"D35" is not a code from D01 to D34'),
        ("ignore", ["D01", "d01"], '"D01" is there twice'),
        ("accept", ["anycast"], '"anycast" is not one of broadcast, multicast, unknown'),
        ("accept", ["unknown", "unknown"], '"unknown" is there twice'),
        ("device", "a/b", '"a/b" cannot be the name of a network device'),
        ("device", "sixteen-letters-", '"sixteen-letters-" cannot be the name of a network device'),
        ("bridge", "..", '".." cannot be the name of a network device'),
        ("repeat", 0, "0 would replay nothing"),
    ],
)
def test_forms_say_what_is_wrong(key: str, written: object, wrong: str) -> None:
    """The words end up in the error's line, before the remedy."""
    with pytest.raises(ValueError) as refused:
        FORMS[key][0](written)

    assert str(refused.value) == wrong


@pytest.mark.parametrize(
    ("key", "written"), [("mac", 5), ("mac", ["52:54:00:00:00:01", 5]), ("rate", "fast"), ("device", 5)]
)
def test_forms_hand_on_what_they_do_not_judge(key: str, written: object) -> None:
    """The record's own type refuses it."""
    assert FORMS[key][0](written) == written


def test_shown_keeps_to_one_short_line() -> None:
    """A value of any size fits into an error."""
    assert shown("a\nb") == '"a\\nb"'
    assert shown(["x" * 90]) == '["' + "x" * 55 + "..."
