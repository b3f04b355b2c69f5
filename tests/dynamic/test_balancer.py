# SPDX-License-Identifier: Apache-2.0
"""Dynamic placement: load spreads, calm gathers, and what is steady rests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.dynamic.balancer import MOVES, Balancer, Marks, Move, Served

CPUS = (1, 2, 3, 4)
QUICK = Marks(looks_low=6, hold=4.0)
HELD = Marks(looks_low=4, hold=9.0)  # what has moved stays for longer than it takes to find room elsewhere


@dataclass
class Host:
    """An engine on paper: each receive queue has a load of its own, and each processor a rest; who moves takes its load along."""

    shares: dict[str, float]
    cpus: dict[str, int]
    rest: dict[int, float] = field(default_factory=lambda: dict.fromkeys(CPUS, 0.0))
    allowed: Mapping[str, Collection[int]] = field(default_factory=dict)
    marks: Marks = field(default_factory=Marks)
    now: float = 1000.0
    moves: list[tuple[float, Move]] = field(default_factory=list)
    noise: Callable[[int], float] = lambda _: 0.0

    def __post_init__(self) -> None:
        self.balancer = Balancer(self.marks)

    def load(self, cpu: int) -> float:
        return self.rest[cpu] + sum(self.shares[name] for name, where in self.cpus.items() if where == cpu)

    def run(self, looks: int) -> list[Move]:
        """Look once a second, and do what is said."""
        made = []
        for look in range(looks):
            self.now += 1.0
            shares = {name: max(share + self.noise(look), 0.0) for name, share in self.shares.items()}
            loads = dict(self.rest)
            for name, cpu in self.cpus.items():
                loads[cpu] += shares[name]
            queues = {
                name: Served(cpu, shares[name], self.allowed.get(name, tuple(self.rest)))
                for name, cpu in self.cpus.items()
            }
            moves = self.balancer.look(self.now, loads, queues)
            for move in moves:
                assert move.cpu in queues[move.name].allowed
                assert move.cpu != self.cpus[move.name]
                self.cpus[move.name] = move.cpu
            assert len(moves) <= self.marks.moves
            assert len({move.name for move in moves}) == len(moves)
            made += moves
            self.moves += [(self.now, move) for move in moves]
        return made


def host(cpus: int, *shares: float, at: int = 1, **keys: object) -> Host:
    names = [f"q{number}" for number in range(len(shares))]
    rest = dict.fromkeys(CPUS[:cpus], 0.0)
    return Host(dict(zip(names, shares, strict=True)), dict.fromkeys(names, at), rest, **keys)  # type: ignore[arg-type]


# --- scenarios ----------------------------------------------------------------------------------------------------


def test_a_load_step_up_spreads():
    """S11. Two receive queues become busy on one processor; after three looks one of them has another."""
    one = host(2, 0.1, 0.1)
    assert one.run(50) == []
    one.shares = {"q0": 0.5, "q1": 0.45}
    made = one.run(10)

    assert [(move.name, move.cpu) for move in made] == [("q1", 2)]
    assert made[0].why.startswith("processor 1 is busy for 8")
    assert ", above 80% for 3 looks, and 2 for 0%: then " in made[0].why
    assert one.cpus == {"q0": 1, "q1": 2}


def test_a_load_step_down_gathers_on_one_processor():
    """S11. The lowest of those that are busy; after a minute."""
    one = host(4, 0.4, 0.3, 0.4, 0.3)
    one.cpus = dict(zip(one.shares, CPUS, strict=True))
    assert one.run(200) == []
    one.shares = dict.fromkeys(one.shares, 0.05)
    assert one.run(59) == []
    made = one.run(120)

    assert set(one.cpus.values()) == {1}
    assert len(made) == 3
    assert made[0].name == "q3"
    assert made[0].why == (
        "processor 4 is busy for 5%, and for 60 looks 1 could do that beside its own below 50%: 4 may sleep"
    )
    assert one.run(500) == []


def test_the_last_processor_is_emptied_first():
    """And each receive queue goes straight to where it stays."""
    one = host(3, 0.1, 0.1, 0.1)
    one.cpus = dict(zip(one.shares, CPUS, strict=False))
    assert [(move.name, move.cpu) for move in one.run(200)] == [("q2", 1), ("q1", 1)]


def test_a_processor_that_would_not_sleep_is_not_emptied():
    """Its lanes keep it awake."""
    one = host(2, 0.1, 0.1)
    one.cpus["q1"] = 2
    one.rest[2] = 0.45
    assert one.run(300) == []


def test_after_spreading_the_look_for_room_begins_anew():
    """Load has just changed: what was calm before says nothing."""
    one = host(4, 0.3, 0.3, 0.1, 0.1, allowed={"q0": (1, 4), "q1": (1, 4)})
    one.cpus.update(q2=2, q3=3)
    one.run(50)
    one.shares.update(q0=0.45, q1=0.45)
    assert [move.name for move in one.run(8)] == ["q0"]
    spread = one.moves[0][0]
    one.run(200)
    assert one.moves[1][1].name == "q3"
    assert one.moves[1][0] - spread == 60


def test_up_and_down_and_up_again():
    """One move for each step."""
    one = host(2, 0.45, 0.45)
    for _ in range(3):
        one.shares = dict.fromkeys(one.shares, 0.45)
        assert len(one.run(100)) == 1
        assert len(set(one.cpus.values())) == 2
        one.shares = dict.fromkeys(one.shares, 0.02)
        assert len(one.run(200)) == 1
        assert set(one.cpus.values()) == {1}


@pytest.mark.parametrize("shares", [(0.79,), (0.3, 0.3), (0.26, 0.25, 0.25), ()])
def test_steady_load_between_the_marks_moves_nobody(shares: tuple[float, ...]):
    one = host(2, *shares)
    assert one.run(1000) == []


def test_a_peak_of_two_looks_moves_nobody():
    one = host(2, 0.3, 0.3)
    one.run(20)
    for _ in range(20):
        one.shares = dict.fromkeys(one.shares, 0.5)
        one.run(2)
        one.shares = dict.fromkeys(one.shares, 0.3)
        assert one.run(10) == []
    assert not one.moves


def test_noise_around_a_mark_moves_one_once():
    """Between the marks for gathering and spreading lies more than the noise."""
    one = host(2, 0.41, 0.41, noise=lambda look: 0.05 * ((look * 7919) % 21 - 10) / 10)
    one.run(3000)
    assert len(one.moves) <= 1


def test_a_receive_queue_larger_than_a_processor_is_left_where_it_is():
    """Wherever it went, it would be the same; nor are the small ones worth a stop."""
    one = host(2, 1.0, 0.02, 0.02)
    assert one.run(500) == []


def test_as_few_as_possible_move():
    """The one that helps most: a single stop of rings, not two."""
    one = host(2, 0.1, 0.75, 0.1)
    assert [move.name for move in one.run(500)] == ["q1"]


def test_a_large_one_is_left_by_the_small_where_it_fits_nowhere():
    one = host(2, 0.1, 0.7, 0.15)
    one.rest[2] = 0.3
    assert {move.name for move in one.run(500)} == {"q0", "q2"}


def test_many_small_ones_move_a_few_a_look():
    one = host(2, *[1 / 128] * 120)
    one.run(3)
    assert len(one.moves) == MOVES
    one.run(20)
    assert one.load(1) == 89 / 128
    assert len(one.moves) == 31


def test_where_all_are_full_nobody_moves():
    one = host(2, 0.5, 0.5, 0.45, 0.45)
    one.cpus.update(q2=2, q3=2)
    assert one.run(500) == []


def test_who_names_its_processor_stays_and_others_come_to_it():
    """A processor with such a queue cannot sleep: the others gather there, whatever its number."""
    one = host(4, 0.1, 0.1, 0.1, allowed={"q2": (3,)})
    one.cpus = {"q0": 1, "q1": 2, "q2": 3}
    one.run(300)
    assert set(one.cpus.values()) == {3}
    one.shares = dict.fromkeys(one.shares, 0.31)
    assert "q2" not in {move.name for move in one.run(300)}
    assert one.cpus["q2"] == 3


def test_nobody_leaves_the_processors_of_its_uplink():
    one = host(3, 0.5, 0.5, allowed={"q0": (1, 2), "q1": (1, 2)})
    one.rest[2] = 0.95
    assert one.run(100) == []
    one.rest[2] = 0.1
    assert {move.cpu for move in one.run(100)} == {2}


def test_a_processor_that_works_for_nobody_takes_nobody():
    """What its lanes cost counts: it is no room."""
    one = host(2, 0.45, 0.45)
    one.rest[2] = 0.9
    assert one.run(300) == []


def test_a_queue_elsewhere_is_left_alone():
    balancer = Balancer()
    for now in range(100):
        queues = {"a": Served(9, 1.0, (1, 9)), "b": Served(1, 0.2, (1, 9))}
        assert balancer.look(float(now), {1: 0.2, 2: 0.0}, queues) == []


def test_a_move_that_was_not_made_is_asked_for_again_after_its_time():
    balancer = Balancer()
    asked = [
        now
        for now in range(100)
        for _ in balancer.look(float(now), {1: 0.9, 2: 0.0}, {n: Served(1, 0.45, (1, 2)) for n in "ab"})
    ]
    assert asked[0] == 2
    assert sorted(asked)[2] == 32


def test_who_was_moved_by_others_stays_for_its_time():
    """A reload counts as a move."""
    one = host(2, 0.45, 0.4)
    one.run(1)
    one.cpus = {"q0": 2, "q1": 2}
    one.run(29)
    assert one.moves == []
    one.run(5)
    assert len(one.moves) == 1


@pytest.mark.parametrize(
    "wrong", [{"low": 0.8}, {"aim": 0.9}, {"margin": 0.0}, {"looks_low": 3}, {"low": 0.0}]
)
def test_marks_that_would_oscillate_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="needs"):
        Marks(**wrong)  # type: ignore[arg-type]


# --- properties ---------------------------------------------------------------------------------------------------

SHARES = st.one_of(st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0]), st.floats(0.0, 1.2))


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    cpus = CPUS[: draw(st.integers(1, 4))]
    names = [f"q{number}" for number in range(draw(st.integers(0, 9)))]
    allowed = {
        name: draw(st.one_of(st.just(cpus), st.sets(st.sampled_from(cpus), min_size=1))) for name in names
    }
    return Host(
        {name: draw(SHARES) for name in names},
        {name: draw(st.sampled_from(sorted(allowed[name]))) for name in names},
        {cpu: draw(st.sampled_from([0.0, 0.0, 0.1, 0.6])) for cpu in cpus},
        allowed,
        draw(st.sampled_from([QUICK, HELD])),
    )


@given(hosts())
def test_steady_load_comes_to_rest(one: Host):
    """Finitely many moves, then none: on any host, from any start, with some larger than a processor."""
    before = max((one.load(cpu) for cpu in one.rest), default=0.0)
    one.run(40 + 30 * len(one.shares))
    assert len(one.moves) <= 3 * len(one.shares)
    assert one.run(100) == []
    assert max(one.load(cpu) for cpu in one.rest) <= max(before, one.marks.low) + 1e-9


@given(hosts(), st.data())
def test_nothing_moves_twice_within_its_time(one: Host, data: st.DataObject):
    """Whatever the load does."""
    for _ in range(6):
        one.shares = {name: data.draw(SHARES) for name in one.shares}
        one.run(data.draw(st.integers(1, 12)))
    last: dict[str, float] = {}
    for at, move in one.moves:
        assert at - last.get(move.name, -1e9) >= one.marks.hold
        last[move.name] = at


@given(hosts())
def test_a_move_of_steady_load_helps(one: Host):
    """One that spreads leaves the busier of the two less busy; one that gathers keeps both below the mark."""
    for _ in range(60):
        before, cpus = {cpu: one.load(cpu) for cpu in one.rest}, dict(one.cpus)
        touched = {cpu for move in one.run(1) for cpu in (cpus[move.name], move.cpu)}
        after = {cpu: one.load(cpu) for cpu in one.rest}
        if touched and max(before[cpu] for cpu in touched) > one.marks.high - 1e-9:  # the order of a sum
            assert max(after[cpu] for cpu in touched) < max(before[cpu] for cpu in touched)
        elif touched:
            assert max(after[cpu] for cpu in touched) <= one.marks.low + 1e-9


@given(hosts())
def test_the_same_numbers_give_the_same_moves(one: Host):
    """Nothing but what is given decides."""
    other = Host(dict(one.shares), dict(one.cpus), dict(one.rest), one.allowed, one.marks)
    assert one.run(40) == other.run(40)
