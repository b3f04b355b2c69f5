# SPDX-License-Identifier: Apache-2.0
"""What is scarce: nobody gets more than there is, and nobody is refused what there is."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from vmq.contract.budget import Budget, Grant, Need, balance, regrant

BUDGET = Budget(queues=4, processors={1: 2, 2: 2}, locked_memory=1000 * 2048)


def need(processor: int | None = None, buffers: int = 100, weight: int = 100) -> Need:
    return Need(processor, buffers, weight)


def test_one_too_many_is_refused_and_the_others_served():
    """S3."""
    few = Budget(queues=2, processors={1: 8}, locked_memory=1000 * 2048)
    assert balance(few, [], [need()] * 3) == [Grant(1, 100), Grant(1, 100), "all 2 receive queues are taken"]


def test_weight_decides_who_goes_without():
    """VmqWeight: not the one that came last."""
    few = Budget(queues=1, processors={1: 8}, locked_memory=1000 * 2048)
    assert balance(few, [], [need(weight=10), need(weight=90)]) == [
        "all 1 receive queues are taken",
        Grant(1, 100),
    ]


def test_weight_zero_never_has_a_receive_queue():
    """VmqWeight 0."""
    assert balance(BUDGET, [], [need(weight=0)]) == ["weight 0 asks for no receive queue of its own"]


def test_receive_queues_spread_over_processors():
    """The next one goes where most room is left; the lower number if that is equal."""
    grants = balance(BUDGET, [Grant(1, 10)], [need(), need(), need()])
    assert [grant.processor for grant in grants if isinstance(grant, Grant)] == [2, 1, 2]


def test_who_names_a_processor_gets_it_whatever_the_order():
    """Those who name none make room: first come, first served would refuse the last one here."""
    grants = balance(BUDGET, [], [need(), need(), need(1), need(1)])
    assert [grant.processor for grant in grants if isinstance(grant, Grant)] == [2, 2, 1, 1]


def test_a_full_processor_is_named():
    assert balance(BUDGET, [], [need(1)] * 3)[2] == "processor 1 has its 2 receive queues"
    small = Budget(queues=4, processors={1: 1}, locked_memory=1000 * 2048)
    assert balance(small, [], [need()] * 2)[1] == "every processor has as many receive queues as it may"


def test_scarce_memory_is_shared_before_anybody_is_refused():
    """NumSuggestedReceiveBuffers is a hint: half is fine. What is left goes to the first."""
    assert balance(BUDGET, [], [need(buffers=800), need(buffers=800)]) == [Grant(1, 600), Grant(2, 400)]
    assert balance(BUDGET, [], [need(buffers=1999), need(buffers=2)]) == [
        Grant(1, 1000),
        "locked memory for 0 buffers is left, 1 are needed",
    ]


def test_a_change_while_it_runs_takes_what_there_is():
    """A full processor is refused; missing memory is not, for buffers are a hint."""
    held = [Grant(1, 400), Grant(1, 100)]
    mine = Grant(2, 300)
    assert regrant(BUDGET, held, mine, need(1)) == "processor 1 has its 2 receive queues"
    assert regrant(BUDGET, held, mine, need(2, 450)) == Grant(2, 450)
    assert regrant(BUDGET, held, mine, need(None, 900)) == Grant(2, 500)
    assert regrant(BUDGET, held, mine, need(None, 2000)) == mine
    assert regrant(BUDGET, [], mine, need(1)) == Grant(1, 100)


# --- against a search -----------------------------------------------------------------------------------------

budgets = st.builds(
    Budget,
    queues=st.integers(0, 5),
    processors=st.dictionaries(st.integers(1, 3), st.integers(0, 3), min_size=3, max_size=3),
    locked_memory=st.integers(0, 40).map(lambda buffers: buffers * 2048),
)
needs = st.lists(
    st.builds(Need, st.sampled_from([None, 1, 2, 3]), st.integers(1, 20), st.sampled_from([0, 1, 50])),
    max_size=5,
)


def feasible(budget: Budget, wanted: list[Need]) -> bool:
    """Whether all can have their least: every way of placing them is tried."""
    if len(wanted) > budget.queues or any(one.weight == 0 for one in wanted):
        return False
    if sum(-(-one.buffers // 2) for one in wanted) * budget.buffer_bytes > budget.locked_memory:
        return False
    choices = [[one.processor] if one.processor is not None else [1, 2, 3] for one in wanted]
    return any(
        all(places.count(number) <= most for number, most in budget.processors.items())
        for places in product(*choices)
    )


@given(budgets, needs)
def test_a_batch_gets_what_a_search_would_give_it(budget, wanted):
    """By weight, each that can be served beside those before it is served, and no other."""
    answers = balance(budget, [], wanted)
    served: list[Need] = []
    for index in sorted(range(len(wanted)), key=lambda index: -wanted[index].weight):
        fits = feasible(budget, [*served, wanted[index]])
        assert isinstance(answers[index], Grant) == fits
        if fits:
            served.append(wanted[index])


@given(budgets, needs, needs)
def test_nothing_is_given_out_twice(budget, first, second):
    """Two batches: together they keep within the budget, and within what each asked for."""
    held = [grant for grant in balance(budget, [], first) if isinstance(grant, Grant)]
    answers = balance(budget, held, second)
    grants = held + [grant for grant in answers if isinstance(grant, Grant)]
    assert len(grants) <= budget.queues
    assert sum(grant.buffers for grant in grants) * budget.buffer_bytes <= budget.locked_memory
    for number, most in budget.processors.items():
        assert sum(grant.processor == number for grant in grants) <= most
    for one, grant in zip(second, answers, strict=True):
        if isinstance(grant, Grant):
            assert one.processor in {None, grant.processor}
            assert one.least <= grant.buffers <= one.buffers
        else:
            assert grant
