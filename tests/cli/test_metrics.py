# SPDX-License-Identifier: Apache-2.0
"""`vmq metrics`: the text format, judged by a parser that forgives nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vmq.cli.metrics import VIEWS, exposition, sample

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"(?:,|$)')
ESCAPES = {r"\\": "\\", r"\n": "\n", r"\"": '"'}

QUEUE = {
    "vm": "web", "queue": 0, "frames_to_guest": 12, "bytes_to_guest": 720, "frames_placed": 2,
    "bytes_placed": 120, "bytes_copied": 600, "frames_from_guest": 3,
    "bytes_from_guest": 180, "offered_to_guest": 14, "forwarded": 3, "copies": 3, "indications": 5,
    "suppressed": 1, "calls_lost": 0, "drops": {"to_guest_no_buffer": 2},
}  # fmt: skip
HISTOGRAM = {
    "vm": "web", "queue": 0, "measured": True, "frames": 6, "latency": [1, 2, 3],
    "latency_below_ns": [512, 1024], "latency_total_ns": 9000, "batches": [4, 1, 0], "batches_below": [2, 4],
}  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "vms": [{"name": "web", "state": "running", "connects": 1}, {"name": 'a"\\\nb', "state": "listening", "connects": 0}],
    "queues": [QUEUE],
    "uplinks": [
        {"name": "lan", "frames_from_wire": 1, "drops": {}},
        {"name": "nic", "frames_from_wire": 2, "drops": {}, "verdicts": {"steered": 2, "group": 0}},
    ],
    "processors": [
        {"cpu": 3, "rounds": 1, "bursts": 1, "sleeps": 1, "wakeups": 1, "busy_ratio": 0.25},
        {"cpu": 4, "rounds": 0, "bursts": 0, "sleeps": 0, "wakeups": 0, "busy_ratio": None},
    ],
    "histograms": [HISTOGRAM, {**HISTOGRAM, "queue": 1, "measured": False, "frames": 0}],
}  # fmt: skip

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def labels_of(text: str) -> dict[str, str]:
    found, place = {}, 0
    while place < len(text):
        match = LABEL.match(text, place)
        assert match, text
        assert match[1] not in found
        found[match[1]] = re.sub(r"\\.", lambda one: ESCAPES[one[0]], match[2])
        place = match.end()
    return found


def parse(text: str) -> tuple[dict[str, str], Samples]:
    """Kinds of metrics, and samples. Each metric stands in one piece behind its HELP and TYPE; no sample twice."""
    kinds: dict[str, str] = {}
    samples: Samples = {}
    helped = current = ""
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if match := re.fullmatch(rf"# HELP ({NAME}) (\S.*)", line):
            helped = match[1]
            assert helped not in kinds
        elif match := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|histogram)", line):
            current = match[1]
            assert current == helped
            kinds[current] = match[2]
        else:
            match = re.fullmatch(rf"({NAME})\{{(.*)\}} (\S+)", line)
            assert match, line
            ends = ("_bucket", "_sum", "_count") if kinds[current] == "histogram" else ("",)
            assert match[1] in {current + end for end in ends}
            assert (kinds[current] == "counter") == match[1].endswith("_total")
            key = match[1], tuple(labels_of(match[2]).items())
            assert key not in samples
            samples[key] = float(match[3])
    return kinds, samples


@pytest.fixture
def parsed() -> tuple[dict[str, str], Samples]:
    return parse("".join(f"{line}\n" for line in exposition(ROWS)))


def test_counters_have_the_names_of_the_views(parsed: tuple[dict[str, str], Samples]):
    kinds, samples = parsed
    web = (("vm", "web"), ("queue", "0"))
    assert samples["vmq_queue_frames_to_guest_total", web] == 12
    assert samples["vmq_queue_drops_total", (*web, ("drop", "to_guest_no_buffer"))] == 2
    assert samples["vmq_uplink_frames_from_wire_total", (("uplink", "lan"),)] == 1
    assert samples["vmq_processor_busy_ratio", (("processor", "3"),)] == 0.25
    assert ("vmq_processor_busy_ratio", (("processor", "4"),)) not in samples
    assert samples["vmq_vm_state", (("vm", "web"), ("state", "running"))] == 1
    assert "vmq_uplink_drops_total" not in kinds
    assert samples["vmq_uplink_verdicts_total", (("uplink", "nic"), ("verdict", "steered"))] == 2


def test_a_name_may_hold_anything(parsed: tuple[dict[str, str], Samples]):
    assert parsed[1]["vmq_vm_connects_total", (("vm", 'a"\\\nb'),)] == 0


def test_buckets_are_cumulative_and_end_with_all(parsed: tuple[dict[str, str], Samples]):
    """In seconds, and only what is measured; batches up to and with their edge."""
    samples = parsed[1]
    web = (("vm", "web"), ("queue", "0"))
    name = "vmq_queue_latency_seconds"
    buckets = {key[1][-1][1]: value for key, value in samples.items() if key[0] == f"{name}_bucket"}
    assert {float(edge): count for edge, count in buckets.items()} == {
        512e-9: 1,
        1024e-9: 3,
        float("inf"): 6,
    }
    assert (samples[f"{name}_count", web], samples[f"{name}_sum", web]) == (6, 9e-6)
    batches = {
        key[1][-1][1]: value
        for key, value in samples.items()
        if key[0] == "vmq_queue_batch_frames_bucket" and key[1][:2] == web
    }
    assert batches == {"1": 4, "3": 5, "+Inf": 5}
    assert samples["vmq_queue_batch_frames_sum", web] == 12


def test_an_engine_without_anything_has_nothing_to_say():
    kinds, samples = parse("".join(f"{line}\n" for line in exposition({view: [] for view in VIEWS})))
    assert samples == {}
    assert set(kinds.values()) <= {"histogram"}


def test_the_command_asks_for_every_view(vmq, engine):
    engine.answer(*(ROWS[view] for view in VIEWS))
    code, out, _ = vmq("metrics")
    assert code == 0
    assert [asked["params"]["what"] for asked in engine.asked] == list(VIEWS)
    parse(out)


def test_a_sample_is_exact():
    assert sample("a", {"b": "c"}, 1 << 62) == f'a{{b="c"}} {1 << 62}'
