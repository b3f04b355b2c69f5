# SPDX-License-Identifier: Apache-2.0
"""Receive queues by weight × traffic: to the busy, back from the idle, and never to and fro."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.contract.budget import Budget, Grant, Need, balance
from vmq.dynamic.scarce import Claim, Scarce, Swap, Terms, first_holders

QUICK = Terms(looks_busier=3, looks_idle=5, hold=6.0)


@dataclass
class Host:
    """An uplink on paper, in the order of the configuration."""

    queues: int | None
    weights: dict[str, int]
    rates: dict[str, float] = field(default_factory=dict)
    terms: Terms = field(default_factory=Terms)
    owners: set[str] = field(default_factory=set)
    now: float = 1000.0
    swaps: list[tuple[float, Swap]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scarce = Scarce(self.terms)

    def run(self, looks: int, rate: Callable[[int, str], float] | None = None) -> list[Swap]:
        """Look once a second, and do what is said: what is lost first, then what is won."""
        made = []
        for look in range(looks):
            self.now += 1.0
            vms = {
                name: Claim(
                    weight, rate(look, name) if rate else self.rates.get(name, 0.0), name in self.owners
                )
                for name, weight in self.weights.items()
            }
            swaps = self.scarce.look(self.now, self.queues, vms)
            losers = [swap.loser for swap in swaps if swap.loser is not None]
            winners = [swap.winner for swap in swaps if swap.winner is not None]
            assert self.owners.issuperset(losers)
            assert not self.owners.intersection(winners)
            assert len({*losers, *winners}) == len(losers) + len(winners)
            assert len(swaps) <= self.terms.swaps
            self.owners = (self.owners - set(losers)) | set(winners)
            assert len(self.owners) <= len(vms)
            made += swaps
            self.swaps += [(self.now, swap) for swap in swaps]
        return made


def host(queues: int | None, *rates: float, **keys: object) -> Host:
    names = "abcdefgh"[: len(rates)]
    return Host(queues, dict.fromkeys(names, 100), dict(zip(names, rates, strict=True)), **keys)  # type: ignore[arg-type]


# --- scenarios ----------------------------------------------------------------------------------------------------


def test_without_scarcity_every_vm_has_one():
    one = host(None, 0.0, 5000.0, 0.0)
    assert [(swap.loser, swap.winner) for swap in one.run(1)] == [(None, "b"), (None, "a"), (None, "c")]
    assert one.run(200) == []


def test_a_busy_vm_gets_the_receive_queue_of_an_idle_one():
    """B4, D10 and D11: after some looks, with both numbers."""
    one = host(2, 0.0, 0.0, 0.0)
    one.run(60)
    assert one.owners == {"a", "b"}
    one.rates = {"a": 8000.0, "c": 8000.0}
    made = one.run(20)

    assert [(swap.loser, swap.winner) for swap in made] == [("b", "c")]
    assert made[0].why.startswith("c has weight 100 and ")
    assert made[0].why.endswith(
        " frames/s, more than 2 times as much for 5 looks: b has weight 100 and 0 frames/s"
    )


def test_it_is_given_back_when_both_are_idle():
    """The order without traffic comes back by itself."""
    one = host(1, 0.0, 9000.0, owners={"a"})
    one.run(60)
    assert one.owners == {"b"}
    one.rates = {}
    made = one.run(200)

    assert [(swap.loser, swap.winner) for swap in made] == [("b", "a")]
    assert made[0].why == "both are idle for 60 looks, and a comes first"


def test_who_is_busy_again_gets_it_before_the_minute_is_over():
    one = host(1, 0.0, 9000.0, owners={"a"})
    one.run(60)
    one.rates = {"a": 9000.0, "b": 0.0}
    one.run(30)
    assert one.owners == {"a"}


def test_each_holder_is_compared_with_the_one_that_would_take_its_place():
    """One idle holder makes no room for two."""
    one = host(2, 0.0, 10_000.0, 9_000.0, 8_000.0, owners={"a", "b"})
    assert [(swap.loser, swap.winner) for swap in one.run(200)] == [("a", "c")]


def test_a_swap_that_was_not_made_is_asked_for_again_after_its_time():
    scarce = Scarce()
    claims = {"a": Claim(100, 0.0, owns=True), "b": Claim(100, 9000.0, owns=False)}
    asked = [now for now in range(80) for _ in scarce.look(float(now), 1, claims)]
    assert asked == [4, 34, 64]


def test_what_others_gave_is_kept_for_its_time():
    """A reload, or a client of the contract."""
    one = host(1, 0.0, 9000.0, owners={"b"})
    one.run(5)
    one.owners = {"a"}
    assert one.run(30) == []
    assert [(swap.loser, swap.winner) for swap in one.run(5)] == [("a", "b")]


def test_a_place_goes_to_one_at_a_time():
    """Wanted by a busy VM and due to an idle one at the same look: the busy one has it."""
    one = host(1, 0.0, 0.0, 0.0, owners={"b"})
    one.run(55)
    one.rates["c"] = 1e6
    assert [(swap.loser, swap.winner) for swap in one.run(5)] == [("b", "c")]


def test_who_has_lost_a_place_waits_before_it_takes_another():
    one = host(2, 0.0, 9000.0, 9000.0, owners={"a", "b"})
    one.run(5)
    assert one.owners == {"b", "c"}
    one.rates.update(a=1e6, b=0.0)
    assert one.run(30) == []
    assert [(swap.loser, swap.winner) for swap in one.run(1)] == [("b", "a")]


def test_weight_multiplies():
    one = Host(1, {"a": 100, "b": 10}, {"a": 1000.0, "b": 9000.0}, owners={"a"})
    assert one.run(200) == []
    one.rates["b"] = 21_000.0
    assert [(swap.loser, swap.winner) for swap in one.run(60)] == [("a", "b")]


def test_weight_zero_never_has_one():
    """VmqWeight 0, busy or not, and where none is scarce."""
    one = Host(None, {"a": 0, "b": 1}, {"a": 1e6})
    one.run(100)
    assert one.owners == {"b"}
    one.weights["b"] = 0
    assert [(swap.loser, swap.winner) for swap in one.run(50)] == [("b", None)]


def test_little_more_traffic_is_not_enough():
    one = host(1, 10_000.0, 19_000.0, owners={"a"})
    assert one.run(500) == []


def test_a_few_frames_are_idle():
    """What is below is not compared: three times nothing is nothing."""
    one = host(1, 1.0, 99.0, owners={"a"})
    assert one.run(500) == []


def test_a_lower_number_of_queues_takes_from_those_worth_least():
    one = host(3, 500.0, 900.0, 700.0, owners={"a", "b", "c"})
    one.run(10)
    one.queues = 1
    made = one.run(1)
    assert [(swap.loser, swap.winner) for swap in made] == [("a", None), ("c", None)]
    assert made[0].why == "the uplink has 1, and others are worth more"
    one.queues = 0
    one.run(50)
    assert one.owners == set()


def test_a_freed_place_goes_to_the_best_at_once():
    one = host(2, 1000.0, 0.0, 9000.0, 4000.0, owners={"a", "b"})
    one.run(2)
    del one.weights["a"]
    one.owners.discard("a")
    made = one.run(1)
    assert (made[0].loser, made[0].winner) == (None, "c")
    assert made[0].why == "1 of 2 are free: c has weight 100 and 9,000 frames/s"


@pytest.mark.parametrize("period", [1, 2, 5])
def test_fast_alternation_moves_nothing(period: int):
    """Two VMs in turns, faster than traffic is smoothed."""
    one = host(1, 0.0, 0.0, owners={"a"})
    one.run(1000, lambda look, name: 1e5 * ((look // period) % 2 == (name == "a")))
    assert len(one.swaps) <= 1


@pytest.mark.parametrize("period", [10, 30, 90])
def test_slow_alternation_changes_once_in_its_time_at_most(period: int):
    one = host(1, 0.0, 0.0, owners={"a"})
    one.run(1000, lambda look, name: 1e5 * ((look // period) % 2 == (name == "a")))
    times = [at for at, _ in one.swaps]
    assert all(after - before >= 30.0 for before, after in pairwise(times))
    assert len(times) <= 1000 / max(period, 30)


def test_swaps_are_bounded():
    """A thousand VMs that wake up together."""
    names = [f"vm{number}" for number in range(1000)]
    one = Host(500, dict.fromkeys(names, 100), dict.fromkeys(names[500:], 1e4), owners=set(names[:500]))
    assert len(one.run(8)) <= 8 * one.terms.swaps
    assert one.swaps


@pytest.mark.parametrize("wrong", [{"factor": 0.9}, {"busy_rate": 0.0}])
def test_terms_that_would_oscillate_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="needs"):
        Terms(**wrong)  # type: ignore[arg-type]


# --- properties ---------------------------------------------------------------------------------------------------

WEIGHTS = st.lists(st.sampled_from([0, 1, 10, 50, 100, 100]), max_size=7).map(
    lambda weights: dict(zip("abcdefg", weights, strict=False))
)
RATES = st.one_of(st.sampled_from([0.0, 50.0, 150.0, 1e3, 1e4]), st.floats(0.0, 1e5))


@st.composite
def hosts(draw: st.DrawFn, rates: st.SearchStrategy[float] = RATES) -> Host:
    weights = draw(WEIGHTS)
    queues = draw(st.integers(0, 8))
    owners = set(draw(st.permutations(sorted(weights)))[: draw(st.integers(0, queues))])
    return Host(queues, weights, {name: draw(rates) for name in weights}, QUICK, owners)


def admitted(weights: dict[str, int], queues: int) -> set[str]:
    """Who has a receive queue of its own when the contract completes all of them as one batch."""
    budget = Budget(queues, {1: len(weights)}, 2048 * len(weights))
    verdicts = balance(budget, [], [Need(None, 1, weight) for weight in weights.values()])
    return {name for name, verdict in zip(weights, verdicts, strict=True) if isinstance(verdict, Grant)}


@given(WEIGHTS, st.integers(0, 8))
def test_before_any_traffic_it_is_as_the_contract_balances(weights: dict[str, int], queues: int):
    """The plan, a batch and a running engine name the same VMs."""
    assert set(first_holders(weights, queues)) == admitted(weights, queues)
    assert first_holders(weights, None) == first_holders(weights, len(weights))


@given(hosts(rates=st.sampled_from([0.0, 99.0])))
def test_without_traffic_it_becomes_what_the_contract_balances(one: Host):
    """From any start."""
    one.run(100)
    assert one.owners == admitted(one.weights, one.queues or 0)
    assert one.run(50) == []


@given(hosts())
def test_steady_traffic_comes_to_rest(one: Host):
    """Finitely many swaps, then none; nobody without a place is worth much more than a holder."""
    one.run(150)
    assert len(one.swaps) <= 3 * len(one.weights)
    assert one.run(100) == []
    worth = {
        name: weight * one.rates[name] if one.rates[name] >= QUICK.busy_rate else 0.0
        for name, weight in one.weights.items()
    }
    without = [worth[name] for name in worth if name not in one.owners]
    if one.owners and without:
        assert max(without) <= QUICK.factor * min(worth[name] for name in one.owners) * (1 + 1e-9)


@given(hosts(), st.data())
def test_a_holder_keeps_its_place_for_its_time(one: Host, data: st.DataObject):
    """And who has lost it takes no other one from anybody before."""
    for _ in range(6):
        one.rates = {name: data.draw(RATES) for name in one.weights}
        one.run(data.draw(st.integers(1, 12)))
    last: dict[str, float] = {}
    for at, swap in one.swaps:
        for name in (swap.loser, swap.winner):
            if name is not None and swap.loser is not None and swap.winner is not None:
                assert at - last.get(name, -1e9) >= QUICK.hold
            if name is not None:
                last[name] = at


@given(hosts(), st.data())
def test_never_more_than_there_are_once_all_is_taken_back(one: Host, data: st.DataObject):
    """Any number of queues, at any time."""
    for _ in range(4):
        one.queues = data.draw(st.integers(0, 8))
        one.run(1)
        assert len(one.owners) <= one.queues
        assert all(one.weights[name] for name in one.owners)
