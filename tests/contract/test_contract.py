# SPDX-License-Identifier: Apache-2.0
"""Each operation, its rules and its statuses, one at a time; `any_order` has all of them in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.any_order import AnyOrder
from tests.contract.double import Bench, filter_of
from vmq.contract import DEFAULT_QUEUE, STATUSES, Budget, Capabilities, Operation, Parameters, Property
from vmq.contract.contract import QUEUES_MAX
from vmq.errors import ApiError
from vmq.filters import Capabilities as FilterCapabilities
from vmq.filters import Field, FieldTest, Filter, Flag, Kind

NO_ID = [-1, 77, 1 << 40, True, None, "1", 0.0]
MOVES = Property.DYNAMIC_PROCESSOR_AFFINITY_CHANGE


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- ALLOCATE_QUEUE, QUEUE_ALLOCATION_COMPLETE ----------------------------------------------------------------


def test_a_new_receive_queue_has_an_id_and_nothing_else(bench):
    name = bench.contract.allocate("a", {"name": "web"})
    assert name == 1
    assert bench.step(name) == "Allocated"
    assert bench.double.told == []


@pytest.mark.parametrize("owner", ["", "x" * 257, "two\nlines", None, 7])
def test_an_owner_has_a_name(bench, owner):
    assert bench.refused(bench.contract.allocate, owner, {}) == "INVALID_PARAMETER"
    assert bench.refused(bench.contract.set_filter, owner, DEFAULT_QUEUE, filter_of(1)) == "INVALID_PARAMETER"
    assert bench.refused(bench.contract.clear_filter, owner, 1) == "FILE_NOT_FOUND"


def test_a_processor_that_vmq_does_not_have_is_refused(bench):
    """The sample: CPU out of range."""
    assert bench.refused(bench.contract.allocate, "a", {"processor": 9}) == "INVALID_PARAMETER"


def test_too_many_receive_queues_are_refused():
    bench = Bench(queues_max=2)
    first = bench.queue(complete=False)
    bench.queue(complete=False)
    assert bench.refused(bench.contract.allocate, "a", {}) == "FAILURE"
    bench.contract.free("a", first)
    assert bench.step(bench.queue(complete=False)) == "Allocated"


def test_a_batch_with_one_too_many_serves_the_others(bench):
    """S3: the others SUCCESS, that one RESOURCES; it stays as it was, and may be completed again."""
    names = [bench.queue("a", filter_of(last), complete=False) for last in range(5)]

    answers = bench.contract.allocation_complete("a", names)

    assert [one.queue for one in answers] == names
    assert [one.status for one in answers] == ["SUCCESS"] * 4 + ["RESOURCES"]
    assert answers[4].why == "all 4 receive queues are taken"
    assert [bench.step(name) for name in names] == ["Running"] * 4 + ["Set"]
    bench.contract.clear_filter("a", 1)
    bench.contract.free("a", names[0])
    assert bench.contract.allocation_complete("a", names[4:])[0].status == "SUCCESS"
    assert bench.contract.queue_parameters("a", names[4])["why"] == ""


def test_completing_twice_fails_for_that_receive_queue_only(bench):
    """The sample: a status of its own in the batch."""
    done, new = bench.queue(), bench.queue(complete=False)
    answers = bench.contract.allocation_complete("a", [done, new, new])
    assert [one.status for one in answers] == ["INVALID_PARAMETER", "SUCCESS", "INVALID_PARAMETER"]
    assert bench.step(new) == "Paused"


@pytest.mark.parametrize("name", [DEFAULT_QUEUE, *NO_ID])
def test_a_batch_names_its_owners_receive_queues(bench, name):
    other = bench.queue("b", complete=False)
    mine = bench.queue(complete=False)
    answers = bench.contract.allocation_complete("a", [name, other, mine])
    assert [one.status for one in answers] == ["INVALID_PARAMETER", "INVALID_PARAMETER", "SUCCESS"]
    assert all(one.why for one in answers[:2])
    assert bench.step(other) == "Allocated"


@pytest.mark.parametrize("length", [0, QUEUES_MAX + 1])
def test_a_batch_has_a_length(bench, length):
    assert bench.refused(bench.contract.allocation_complete, "a", [1] * length) == "INVALID_LENGTH"


def test_an_engine_that_cannot_reserve_is_a_lack_of_resources(bench):
    """Reserved while nothing was disturbed; the reason reaches the client."""
    name = bench.queue("a", filter_of(1), complete=False)
    bench.double.refuses = True
    answer = bench.contract.allocation_complete("a", [name])[0]
    assert (answer.status, answer.why) == ("RESOURCES", "no such ring")
    assert bench.step(name) == "Set"
    bench.double.refuses = False
    assert bench.contract.allocation_complete("a", [name])[0].status == "SUCCESS"


def test_what_a_receive_queue_had_is_there_again_only_when_it_is_gone():
    """Buffers that are still out are locked memory."""
    bench = Bench(Budget(queues=1, processors={1: 1}, locked_memory=256 * 2048))
    old, new = bench.queue(), bench.queue(complete=False)
    bench.double.out[old] = 3
    bench.contract.free("a", old)
    assert bench.contract.allocation_complete("a", [new])[0].status == "RESOURCES"
    bench.double.out.clear()
    bench.contract.progress(old)
    assert bench.contract.allocation_complete("a", [new])[0].status == "SUCCESS"


# --- QUEUE_PARAMETERS -----------------------------------------------------------------------------------------


def test_a_change_of_a_receive_queue_that_runs_reaches_the_engine_and_disturbs_nothing_else(bench):
    """S7: no start, no stop, no filter installed again."""
    name = bench.queue("a", filter_of(1), processor=1)
    bench.forget()
    bench.contract.set_parameters("a", name, {"processor": 2, "suggested_buffers": 100, "name": "other"})
    assert bench.double.told == [("change", name, 2, 100)]
    assert bench.double.asked[name].name == "other"
    assert bench.events == []
    row = bench.contract.queue_parameters("a", name)
    assert (row["name"], row["effective"]) == ("other", {"processor": 2, "suggested_buffers": 100})


def test_a_change_before_completion_is_noted(bench):
    name = bench.queue(complete=False)
    bench.contract.set_parameters("a", name, {"processor": 2})
    assert bench.double.told == []
    bench.contract.allocation_complete("a", [name])
    assert bench.double.told == [("acquire", name, 2, 256)]


def test_a_change_that_changes_nothing_tells_nobody(bench):
    name = bench.queue("a", weight=7)
    bench.forget()
    bench.contract.set_parameters("a", name, {"weight": 7})
    bench.contract.set_parameters("a", name, {})
    assert bench.double.told == []


def test_a_change_is_done_whole_or_not_at_all(bench):
    name = bench.queue()
    for changes in ({"weight": 1, "vm": "x"}, {"weight": 1, "processor": 9}, {"weight": 1, "moderation": 3}):
        assert bench.refused(bench.contract.set_parameters, "a", name, changes) == "INVALID_PARAMETER"


def test_a_full_processor_refuses_one_more(bench):
    first = bench.queue(processor=1)
    bench.queue(processor=1)
    other = bench.queue(processor=2)
    assert bench.refused(bench.contract.set_parameters, "a", other, {"processor": 1}) == "FAILURE"
    bench.contract.set_parameters("a", first, {"processor": 2})
    bench.contract.set_parameters("a", other, {"processor": 1})
    assert bench.double.grants[other].processor == 1


def test_without_the_property_a_receive_queue_does_not_move(bench):
    """DYNAMIC_PROCESSOR_AFFINITY_CHANGE is a capability; other members change all the same."""
    name = bench.queue(processor=1)
    fixed = replace(bench.hardware, properties=bench.hardware.properties - {MOVES})
    bench.contract.change_capabilities(bench.hardware, fixed)
    assert bench.refused(bench.contract.set_parameters, "a", name, {"processor": 2}) == "FAILURE"
    bench.contract.set_parameters("a", name, {"suggested_buffers": 64})
    assert bench.double.grants[name].buffers == 64


def test_only_its_owner_changes_frees_or_fills_a_receive_queue(bench):
    """vmq-semantics.md §4.3: and nobody else sees it, but for the administrator, who changes nothing."""
    name = bench.queue("a", filter_of(1))
    contract = bench.contract
    for other in ("b", None):
        assert bench.refused(contract.set_parameters, other, name, {"weight": 1}) == "INVALID_PARAMETER"
        assert bench.refused(contract.free, other, name) == "INVALID_PARAMETER"
        assert bench.refused(contract.set_filter, other, name, filter_of(2)) == "INVALID_PARAMETER"
        assert bench.refused(contract.clear_filter, other, 1) == "FILE_NOT_FOUND"
        assert bench.refused(contract.move_filter, other, 1, DEFAULT_QUEUE) == "INVALID_PARAMETER"
    assert bench.refused(contract.queue_parameters, "b", name) == "INVALID_PARAMETER"
    assert bench.refused(contract.filter_parameters, "b", 1) == "INVALID_PARAMETER"
    assert bench.refused(contract.enum_filters, "b", name) == "FAILURE"
    assert contract.queue_parameters(None, name)["owner"] == "a"
    assert contract.filter_parameters(None, 1)["owner"] == "a"


# --- the default queue ----------------------------------------------------------------------------------------


def test_the_default_queue_is_nobodys_and_always_runs(bench):
    contract = bench.contract
    for call, *values in (
        (contract.free, "a", DEFAULT_QUEUE),
        (contract.set_parameters, "a", DEFAULT_QUEUE, {"weight": 1}),
        (contract.reset_statistics, "a", DEFAULT_QUEUE),
    ):
        assert bench.refused(call, *values) == "INVALID_PARAMETER"
    row = contract.queue_parameters("a", DEFAULT_QUEUE)
    assert (row["queue"], row["owner"], row["state"], row["effective"]) == (0, "", "Running", {})


def test_everybody_sets_filters_on_the_default_queue_and_clears_its_own(bench):
    """vmq-semantics.md §4.3."""
    contract = bench.contract
    mine = contract.set_filter("a", DEFAULT_QUEUE, filter_of(1))
    theirs = contract.set_filter("b", DEFAULT_QUEUE, filter_of(2))
    assert bench.refused(contract.clear_filter, "a", theirs) == "FILE_NOT_FOUND"
    assert [row["filter"] for row in contract.enum_filters("a", DEFAULT_QUEUE)] == [mine]
    assert [row["filter"] for row in contract.enum_filters(None, DEFAULT_QUEUE)] == [mine, theirs]
    contract.clear_filter("a", mine)
    contract.clear_filter("b", theirs)
    assert bench.step(DEFAULT_QUEUE) == "Running"
    assert bench.events == []
    assert bench.double.filters == {}


def test_a_filter_moves_to_the_default_queue_and_back(bench):
    """How a receive queue is taken from an idle VM, and given back."""
    name = bench.queue("a", filter_of(1))
    bench.contract.move_filter("a", 1, DEFAULT_QUEUE)
    assert bench.step(name) == "Paused"
    assert set(bench.double.filters) == {DEFAULT_QUEUE}
    bench.contract.move_filter("a", 1, name)
    assert bench.step(name) == "Running"
    assert set(bench.double.filters) == {name}


# --- FREE_QUEUE -----------------------------------------------------------------------------------------------


def test_a_receive_queue_with_filters_is_not_freed(bench):
    """The table: its owner clears them first."""
    for complete in (True, False):
        name = bench.queue("a", filter_of(int(complete)), complete=complete)
        assert bench.refused(bench.contract.free, "a", name) == "INVALID_PARAMETER"


def test_a_receive_queue_that_is_being_freed_takes_nothing_any_more(bench):
    """Every operation in the middle of teardown: refused, and teardown goes on."""
    contract = bench.contract
    name, other = bench.queue(), bench.queue("a", filter_of(1))
    bench.double.busy, bench.double.out = {name}, {name: 2}
    assert contract.free("a", name) == "PENDING"
    for state in ("StopDMA", "Freeing"):
        assert bench.step(name) == state
        assert bench.refused(contract.set_filter, "a", name, filter_of(2)) == "INVALID_PARAMETER"
        assert bench.refused(contract.move_filter, "a", 1, name) == "INVALID_PARAMETER"
        assert bench.refused(contract.set_parameters, "a", name, {"weight": 1}) == "INVALID_PARAMETER"
        assert bench.refused(contract.queue_parameters, "a", name) == "INVALID_PARAMETER"
        assert bench.refused(contract.reset_statistics, "a", name) == "INVALID_PARAMETER"
        assert bench.refused(contract.enum_filters, "a", name) == "FAILURE"
        assert bench.refused(contract.free, "a", name) == "INVALID_PARAMETER"
        assert contract.allocation_complete("a", [name])[0].status == "INVALID_PARAMETER"
        bench.double.busy.clear()
        contract.progress(name)
    bench.double.out.clear()
    contract.progress(name)
    assert bench.step(name) == "Undefined"
    assert bench.step(other) == "Running"


def test_an_id_that_is_gone_is_refused_counted_and_never_followed():
    """D17: another receive queue lives in the slot now."""
    bench = Bench(queues_max=1)
    contract = bench.contract
    old = bench.queue()
    contract.free("a", old)
    new = bench.queue("a", filter_of(1))
    assert new != old
    assert bench.refused(contract.set_filter, "a", old, filter_of(2)) == "INVALID_PARAMETER"
    assert bench.refused(contract.free, "a", old) == "INVALID_PARAMETER"
    contract.progress(old)
    assert contract.stale_ids == {"queues": 3, "filters": 0}
    contract.clear_filter("a", 1)
    assert bench.refused(contract.clear_filter, "a", 1) == "FILE_NOT_FOUND"
    assert contract.stale_ids == {"queues": 3, "filters": 1}


@pytest.mark.parametrize("name", NO_ID)
def test_an_id_that_never_was_is_refused_in_each_operations_own_word(bench, name):
    contract = bench.contract
    bench.queue("a", filter_of(1))
    assert bench.refused(contract.set_parameters, "a", name, {}) == "INVALID_PARAMETER"
    assert bench.refused(contract.queue_parameters, "a", name) == "INVALID_PARAMETER"
    assert bench.refused(contract.free, "a", name) == "INVALID_PARAMETER"
    assert bench.refused(contract.set_filter, "a", name, filter_of(2)) == "INVALID_PARAMETER"
    assert bench.refused(contract.move_filter, "a", 1, name) == "INVALID_PARAMETER"
    assert bench.refused(contract.enum_filters, "a", name) == "FAILURE"
    for wrong in (name, 0):
        assert bench.refused(contract.clear_filter, "a", wrong) == "FILE_NOT_FOUND"
        assert bench.refused(contract.move_filter, "a", wrong, DEFAULT_QUEUE) == "INVALID_PARAMETER"
        assert bench.refused(contract.filter_parameters, "a", wrong) == "INVALID_PARAMETER"


# --- filters --------------------------------------------------------------------------------------------------


def test_a_filter_that_is_none_is_refused_and_nothing_is_left_of_it(bench):
    """Flaw 2 of the sample driver: a filter without an address."""
    name = bench.queue()
    no_address = Filter((FieldTest(Field.VLAN_ID, Kind.EQUAL, 10),))
    assert bench.refused(bench.contract.set_filter, "a", name, no_address) == "INVALID_PARAMETER"
    assert bench.queue("a", filter_of(1))
    assert bench.contract.filter_parameters("a", 1)["filter"] == 1


def test_a_filter_that_is_not_possible_here_has_a_status_of_its_own(bench):
    name = bench.queue()
    plain = replace(bench.hardware, filters=FilterCapabilities(flags=Flag(0)))
    bench.contract.change_capabilities(bench.hardware, plain)
    assert bench.refused(bench.contract.set_filter, "a", name, filter_of(1, 0)) == "NOT_SUPPORTED"


def test_too_many_filters_are_refused_and_clearing_makes_room():
    bench = Bench(filters_max=2)
    name = bench.queue("a", filter_of(1), filter_of(2))
    assert bench.refused(bench.contract.set_filter, "a", name, filter_of(3)) == "FAILURE"
    bench.contract.clear_filter("a", 1)
    assert bench.contract.set_filter("a", name, filter_of(3)) not in {1, 2}


def test_two_receive_queues_do_not_share_a_frame(bench):
    """vmq-semantics.md §5.4: refused when set and when moved, whoever owns them; alternatives of one are fine."""
    first = bench.queue("a", filter_of(1, 10), filter_of(1, 10))
    second = bench.queue("b", filter_of(2))
    assert bench.refused(bench.contract.set_filter, "b", second, filter_of(1)) == "INVALID_PARAMETER"
    bench.contract.set_filter("b", second, filter_of(1, priority=1))
    third = bench.queue("a")
    assert bench.refused(bench.contract.move_filter, "a", 1, third) == "INVALID_PARAMETER"
    bench.contract.clear_filter("a", 2)
    bench.contract.move_filter("a", 1, third)
    assert (bench.step(first), bench.step(third)) == ("Paused", "Running")


def test_a_filter_that_moves_to_where_it_is_stays(bench):
    name = bench.queue("a", filter_of(1))
    bench.forget()
    bench.contract.move_filter("a", 1, name)
    assert (bench.events, bench.double.told) == ([], [])


def test_an_owner_moves_filters_among_its_own(bench):
    """Not into somebody else's, where it could take frames away."""
    bench.queue("a", filter_of(1))
    theirs = bench.queue("b")
    assert bench.refused(bench.contract.move_filter, "a", 1, theirs) == "INVALID_PARAMETER"


def test_enumeration_has_what_is_there(bench):
    """NumFilters is a counter; a receive queue without filters has an empty list."""
    name = bench.queue("a", filter_of(1), filter_of(2))
    empty = bench.queue("a")
    assert [row["filter"] for row in bench.contract.enum_filters("a", name)] == [1, 2]
    assert bench.contract.enum_filters("a", empty) == ()
    other = bench.queue("b")
    assert [row["queue"] for row in bench.contract.enum_queues("a")] == [name, empty]
    assert [row["queue"] for row in bench.contract.enum_queues("b")] == [other]
    assert [row["queue"] for row in bench.contract.enum_queues("c")] == []
    assert [row["filters"] for row in bench.contract.enum_queues(None)] == [0, 2, 0, 0]


# --- owners ---------------------------------------------------------------------------------------------------


def test_when_an_owner_goes_everything_goes_that_it_had(bench):
    """Forced free: filters first, those on the default queue too; whatever state anything is in."""
    contract = bench.contract
    names = {
        "Allocated": bench.queue("a", complete=False),
        "Set": bench.queue("a", filter_of(1), complete=False),
        "Running": bench.queue("a", filter_of(2), filter_of(3)),
        "Paused": bench.queue("a"),
        "StopDMA": bench.queue("a"),
    }
    kept = bench.queue("b", filter_of(4))
    contract.set_filter("a", DEFAULT_QUEUE, filter_of(5))
    stays = contract.set_filter("b", DEFAULT_QUEUE, filter_of(6))
    bench.double.busy, bench.double.out = {names["StopDMA"]}, {names["Running"]: 1}
    contract.free("a", names["StopDMA"])
    assert {word: bench.step(name) for word, name in names.items()} == {word: word for word in names}

    waiting = contract.release_owner("a")

    assert set(waiting) == {names["StopDMA"], names["Running"]}
    assert set(bench.double.filters) == {kept, DEFAULT_QUEUE}
    assert [row["filter"] for row in contract.enum_filters(None, DEFAULT_QUEUE)] == [stays]
    bench.double.busy.clear()
    bench.double.out.clear()
    for name in waiting:
        contract.progress(name)
    assert set(bench.double.grants) == {kept}
    assert contract.enum_queues("a") == ()
    assert contract.release_owner("a") == ()


def test_filters_of_an_owner_that_goes_leave_in_one_publication(bench):
    bench.queue("a", filter_of(1))
    bench.queue("a", filter_of(2))
    bench.forget()
    bench.contract.release_owner("a")
    assert [told[0] for told in bench.double.told].count("install") == 1


def test_an_owner_that_goes_is_not_held_by_policy():
    """Switched off, without a property, with weight 0: taking down does not ask."""
    bench = Bench()
    name = bench.queue("a", filter_of(1))
    bench.contract.set_parameters("a", name, {"weight": 0})
    none = Capabilities(queues=0, properties=frozenset(), filters=FilterCapabilities(flags=Flag(0)))
    bench.contract.change_capabilities(bench.hardware, none)
    bench.contract.clear_filter("a", 1)
    assert bench.contract.free("a", name) == "SUCCESS"


# --- the uplink as a whole ------------------------------------------------------------------------------------


def test_switching_one_off_changes_current_only_with_one_event(bench):
    """S12; and what is set stays (S13)."""
    name = bench.queue("a", filter_of(1))
    bench.forget()
    less = replace(bench.hardware, queues=2)
    bench.contract.change_capabilities(bench.hardware, less)
    assert [event["event"] for event in bench.events] == ["current_capabilities", "reset"]
    assert bench.events[0]["lost"] == ["queues"]
    assert bench.contract.hardware_capabilities()["queues"] == 4
    assert bench.contract.current_capabilities()["queues"] == 2
    assert bench.double.filters.keys() == {name}
    assert ("clear_counters", name) in bench.double.told


def test_a_feature_that_comes_back_disturbs_nothing(bench):
    less = replace(bench.hardware, queues=2)
    bench.contract.change_capabilities(bench.hardware, less)
    bench.queue("a", filter_of(1))
    bench.forget()
    bench.contract.change_capabilities(bench.hardware, bench.hardware)
    assert [event["event"] for event in bench.events] == ["current_capabilities"]
    assert bench.double.told == []
    bench.contract.change_capabilities(bench.hardware, bench.hardware)
    assert len(bench.events) == 1


def test_another_device_is_an_event_for_each_set(bench):
    more = replace(bench.hardware, queues=8)
    bench.contract.change_capabilities(more, more)
    assert [event["event"] for event in bench.events] == ["hardware_capabilities", "current_capabilities"]


def test_current_capabilities_are_never_more_than_the_hardwares(bench):
    more = replace(bench.hardware, queues=8)
    with pytest.raises(ApiError, match="queues"):
        bench.contract.change_capabilities(bench.hardware, more)
    assert bench.contract.current_capabilities()["queues"] == 4


def test_fewer_current_receive_queues_are_fewer_to_have(bench):
    bench.contract.change_capabilities(bench.hardware, replace(bench.hardware, queues=1))
    names = [bench.queue(complete=False) for _ in range(2)]
    answers = bench.contract.allocation_complete("a", names)
    assert [one.status for one in answers] == ["SUCCESS", "RESOURCES"]


def test_receive_queues_that_are_switched_off_are_not_to_have(bench):
    name = bench.queue()
    off = replace(bench.hardware, properties=frozenset())
    bench.contract.change_capabilities(bench.hardware, off)
    assert bench.contract.global_parameters()["enabled_queue_types"] == []
    assert bench.refused(bench.contract.allocate, "a", {}) == "NOT_SUPPORTED"
    assert bench.refused(bench.contract.set_filter, "a", name, filter_of(1)) == "NOT_SUPPORTED"


def test_statistics_begin_anew_for_one_receive_queue(bench):
    """An owner's own; the default queue's are the administrator's. What has no resources may have frames: those of its VM."""
    name, waiting = bench.queue(), bench.queue(complete=False)
    bench.forget()
    bench.contract.reset_statistics("a", name)
    bench.contract.reset_statistics("a", waiting)
    bench.contract.reset_statistics(None, name)
    bench.contract.reset_statistics(None, DEFAULT_QUEUE)
    assert bench.refused(bench.contract.reset_statistics, "b", name) == "INVALID_PARAMETER"
    assert bench.double.told == [("clear_counters", one) for one in (name, waiting, name, DEFAULT_QUEUE)]


def test_a_reset_in_the_middle_of_teardown_changes_nothing_there(bench):
    name = bench.queue()
    bench.double.out[name] = 1
    bench.contract.free("a", name)
    bench.contract.reset()
    assert bench.step(name) == "Freeing"
    bench.double.out.clear()
    bench.contract.progress(name)
    assert bench.step(name) == "Undefined"


# --- any value, any order -------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
members = st.dictionaries(
    st.sampled_from([*Parameters.__struct_fields__, "colour"]), anything | st.integers(0, 99), max_size=3
)


@given(owner=anything, name=anything | st.sampled_from([0, 1]), values=members)
def test_no_value_that_json_has_breaks_an_operation(owner, name, values):
    """Done, or refused in a documented word with everything as it was; never an exception of another kind."""
    bench = Bench()
    mine = bench.queue("a", filter_of(1))
    contract = bench.contract
    contract.set_filter("a", DEFAULT_QUEUE, filter_of(9))
    for operation, call, *given_values in (
        (Operation.ALLOCATE_QUEUE, contract.allocate, owner, values),
        (Operation.ALLOCATE_QUEUE, contract.allocate, "a", values),
        (Operation.QUEUE_PARAMETERS, contract.set_parameters, "a", mine, values),
        (Operation.QUEUE_PARAMETERS, contract.set_parameters, owner, name, values),
        (Operation.QUEUE_PARAMETERS, contract.queue_parameters, owner, name),
        (Operation.FREE_QUEUE, contract.free, owner, name),
        (Operation.SET_FILTER, contract.set_filter, owner, name, filter_of(2)),
        (Operation.CLEAR_FILTER, contract.clear_filter, owner, name),
        (Operation.MOVE_FILTER, contract.move_filter, owner, 1, name),
        (Operation.MOVE_FILTER, contract.move_filter, "a", name, mine),
        (Operation.PARAMETERS, contract.filter_parameters, owner, name),
        (Operation.ENUM_FILTERS, contract.enum_filters, owner, name),
        (Operation.ENUM_QUEUES, contract.enum_queues, owner),
        (Operation.RESET_STATISTICS, contract.reset_statistics, owner, name),
    ):
        before = bench.everything()
        try:
            call(*given_values)
        except ApiError as error:
            status = error.status
        else:
            continue
        assert status in STATUSES[operation]
        assert bench.everything() == before
    assert [one.status for one in contract.allocation_complete(owner, [name])] == ["INVALID_PARAMETER"]
    contract.release_owner(owner)
    contract.progress(name)


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
