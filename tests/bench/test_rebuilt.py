# SPDX-License-Identifier: Apache-2.0
"""Kernels with parts exchanged: on the way to the part only, and the product's own stay as they are."""

from __future__ import annotations

from bench.rebuilt import rebuilt
from vmq.dataplane.handover import parcels_waiting
from vmq.dataplane.loop import sooner
from vmq.dataplane.moderate import bin_of
from vmq.jit import int64, kernel


@kernel
def inner(value: int) -> int:
    return value + 1


@kernel
def outer(value: int) -> int:
    return inner(value) * 10


@kernel
def outermost(value: int) -> int:
    return outer(value) + sooner(-1, 3)


@kernel
def other(value: int) -> int:
    return value + int64(2)


def test_a_part_is_exchanged_however_deep() -> None:
    made = rebuilt(outermost, {inner: other})
    assert made(4) == 63
    assert outermost(4) == 53
    assert outer(4) == 50


def test_what_does_not_call_the_part_is_the_product_s_own() -> None:
    assert rebuilt(parcels_waiting, {bin_of: other}) is parcels_waiting
    assert rebuilt(inner, {inner: other}) is other
