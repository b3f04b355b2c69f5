# SPDX-License-Identifier: Apache-2.0
"""Which filters are refused, with NDIS's statuses: INVALID_PARAMETER what is no filter, NOT_SUPPORTED what is one
that this engine or uplink cannot apply. The order of a filter's tests never matters.

A filter without a test of the destination address is refused, and so is one that no frame can pass: both are
mistakes that would otherwise show as a VM that gets too much, or nothing.
"""

from __future__ import annotations

from vmq.abi.ethernet import VLAN_VID_MAX
from vmq.errors import ApiError
from vmq.filters.model import ALL_FLAGS, BITS, Capabilities, Field, FieldTest, Filter, Flag, Kind
from vmq.filters.overlap import overlap

INVALID, UNSUPPORTED = "INVALID_PARAMETER", "NOT_SUPPORTED"


def check(this: Filter, capabilities: Capabilities) -> None:
    """Raise ApiError, with what is wrong and the remedy, unless the filter can be set."""
    if not this.tests:
        raise ApiError(INVALID, "a filter has no field test", "test the destination address")
    if this.reserved:
        raise ApiError(INVALID, f"the reserved members of a filter are {this.reserved}", "set them to 0")
    if int(this.flags) & ~int(ALL_FLAGS):
        raise ApiError(INVALID, f"a filter has the unknown flags {int(this.flags) & ~int(ALL_FLAGS)}")
    for test in this.tests:
        _check_test(test)
    _check_capabilities(this, capabilities)
    _check_address(this)
    _check_vlan(this, capabilities)
    if not overlap(this, this):
        raise ApiError(INVALID, f"no frame can pass {this}", "remove the tests that contradict each other")


def _check_test(test: FieldTest) -> None:
    """A test on its own: everything fits into the field, and nothing that is unused is set."""
    highest = (1 << BITS[test.field]) - 1
    if not 0 <= test.value <= highest:
        raise ApiError(
            INVALID, f"{test.field}: the value {test.value} is wider than the field", f"use 0 to {highest}"
        )
    if test.kind is not Kind.MASK_EQUAL:
        if test.mask:
            raise ApiError(INVALID, f"{test.field}: a test of {test.kind} has a mask", "use mask_equal")
        return
    if not 0 <= test.mask <= highest:
        raise ApiError(
            INVALID, f"{test.field}: the mask {test.mask} is wider than the field", f"use 1 to {highest}"
        )
    if test.mask == 0:
        raise ApiError(INVALID, f"{test.field}: a mask of 0 tests nothing", "leave the test out")
    if test.value & ~test.mask:
        raise ApiError(
            INVALID,
            f"{test.field}: the value {test.value} has bits outside the mask {test.mask}, so nothing equals it",
            f"use {test.value & test.mask}",
        )


def _check_capabilities(this: Filter, capabilities: Capabilities) -> None:
    """NOT_SUPPORTED names what is missing."""
    for test in this.tests:
        if test.field not in capabilities.fields:
            raise ApiError(UNSUPPORTED, f"the field {test.field} cannot be tested here", "leave the test out")
        if test.kind not in capabilities.tests:
            raise ApiError(UNSUPPORTED, f"{test.field}: tests of {test.kind} are not possible here")
    missing = Flag(int(this.flags) & ~int(capabilities.flags))
    if missing:
        words = ", ".join(str(flag.name).lower() for flag in Flag if flag in missing)
        raise ApiError(UNSUPPORTED, f"flags of the filter that are not possible here: {words}")
    if len(this.tests) > capabilities.tests_per_filter:
        raise ApiError(
            UNSUPPORTED,
            f"a filter has {len(this.tests)} field tests",
            f"use {capabilities.tests_per_filter} or fewer",
        )


def _check_address(this: Filter) -> None:
    if not any(test.field is Field.MAC_DESTINATION for test in this.tests):
        raise ApiError(
            INVALID,
            f"no test of {this} is of the destination address: it would take other VMs' frames",
            "add a test of mac_destination",
        )


def _check_vlan(this: Filter, capabilities: Capabilities) -> None:
    """The rows of the truth table that are no filters."""
    tests = [test for test in this.tests if test.field is Field.VLAN_ID]
    untagged = Flag.VLAN_UNTAGGED_OR_ZERO in this.flags
    if tests and untagged:
        raise ApiError(
            INVALID, f"a filter tests {tests[0]} and has vlan_untagged_or_zero", "keep one of the two"
        )
    for test in tests:
        if test.kind is Kind.EQUAL and not 1 <= test.value <= VLAN_VID_MAX:
            raise ApiError(
                INVALID,
                f"{test.value} is not the number of a VLAN",
                f"use 1 to {VLAN_VID_MAX}, or the flag vlan_untagged_or_zero for frames of none",
            )
    if not tests and not untagged and not capabilities.any_vlan:
        raise ApiError(
            UNSUPPORTED,
            "a filter takes frames of any VLAN, which is not possible here",
            "test vlan_id, or set the flag vlan_untagged_or_zero",
        )
