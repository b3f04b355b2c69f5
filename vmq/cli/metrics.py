# SPDX-License-Identifier: Apache-2.0
"""`vmq metrics`: all counters in the text format that Prometheus reads, of names and labels:

        vmq_queue_frames_to_guest_total{vm="web",queue="0"} 1234

It is printed once and ends, so it serves whoever collects: a file for node_exporter (`vmq metrics > …`), or a socket
unit that runs it for each connection. A drop has a line from its first frame on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from vmq.cli.client import ask_rows
from vmq.cli.grammar import Verbs, add_api, add_verb

Row = Mapping[str, Any]
Labels = dict[str, Any]
VIEWS = ("vms", "queues", "uplinks", "processors", "histograms")
NOUNS = {
    "queues": ("queue", ("vm", "queue")),
    "uplinks": ("uplink", ("name",)),
    "processors": ("processor", ("cpu",)),
    "vms": ("vm", ("name",)),
}
LABELS = {"uplinks": {"name": "uplink"}, "vms": {"name": "vm"}, "processors": {"cpu": "processor"}}
COUNTERS = {
    "vms": {"connects": "connections of its front-end"},
    "queues": {
        "frames_to_guest": "frames that the guest got",
        "bytes_to_guest": "bytes of those",
        "frames_placed": "frames that the kernel wrote into the guest's memory",
        "bytes_placed": "bytes of those",
        "bytes_copied": "bytes of all others that the guest got: the engine wrote them",
        "frames_from_guest": "frames that the guest sent",
        "bytes_from_guest": "bytes of those",
        "offered_to_guest": "frames for the guest, dropped ones too",
        "forwarded": "frames of the guest that went on",
        "copies": "receive queues that they went to",
        "indications": "notifications of the guest",
        "suppressed": "batches for which the guest wanted none",
        "calls_lost": "notifications that could not be made",
    },
    "uplinks": {
        "frames_from_wire": "frames that came in",
        "bytes_from_wire": "bytes of those",
        "frames_to_wire": "frames that left",
        "bytes_to_wire": "bytes of those",
        "forwarded": "frames that came in and went on",
        "copies": "receive queues that they went to",
        "completed": "checksums that were finished in software",
        "segmented": "frames that were cut into segments",
    },
    "processors": {
        "rounds": "rounds over all sources",
        "bursts": "rounds that delivered something",
        "sleeps": "times that there was nothing to do",
        "wakeups": "times that something woke it",
    },
}


def add(verbs: Verbs) -> None:
    add_api(add_verb(verbs, "metrics", run, "all counters, for Prometheus"))


def run(args: argparse.Namespace) -> int:
    for line in exposition({view: ask_rows(args.api, "show", what=view) for view in VIEWS}):
        print(line)
    return 0


def exposition(views: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """The lines of all rows."""
    for view, counters in COUNTERS.items():
        noun = NOUNS[view][0]
        for key, words in counters.items():
            samples = [(_labels(view, row), row[key]) for row in views[view] if row.get(key) is not None]
            yield from family(f"vmq_{noun}_{key}_total", "counter", f"{noun}: {words}", samples)
    for view in ("queues", "uplinks"):
        noun = NOUNS[view][0]
        drops = [
            ({**_labels(view, row), "drop": name}, count)
            for row in views[view]
            for name, count in sorted(row["drops"].items())
        ]
        yield from family(f"vmq_{noun}_drops_total", "counter", f"{noun}: frames that went no further", drops)
    verdicts = [
        ({**_labels("uplinks", row), "verdict": name}, count)
        for row in views["uplinks"]
        for name, count in row.get("verdicts", {}).items()
    ]
    yield from family(
        "vmq_uplink_verdicts_total", "counter", "uplink: frames by verdict of its program", verdicts
    )
    states = [({**_labels("vms", row), "state": row["state"]}, 1) for row in views["vms"]]
    yield from family("vmq_vm_state", "gauge", "vm: 1 at the state that it is in", states)
    busy = [
        (_labels("processors", row), row["busy_ratio"])
        for row in views["processors"]
        if row["busy_ratio"] is not None
    ]
    yield from family("vmq_processor_busy_ratio", "gauge", "processor: share of its time awake", busy)
    yield from _latency([row for row in views["histograms"] if row["measured"] or row["frames"]])
    yield from _batches(views)


def _latency(rows: Sequence[Row]) -> Iterator[str]:
    name = "vmq_queue_latency_seconds"
    yield from _title(name, "histogram", "queue: time from taken to shown, while vmq measure is on")
    for row in rows:
        edges = [edge / 1e9 for edge in row["latency_below_ns"]]
        yield from _histogram(
            name, _labels("queues", row), row["latency"], edges, row["latency_total_ns"] / 1e9
        )


def _batches(views: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    name = "vmq_queue_batch_frames"
    yield from _title(name, "histogram", "queue: frames an indication; the sum is all frames that were shown")
    frames = {(row["vm"], row["queue"]): row["frames_to_guest"] for row in views["queues"]}
    for row in views["histograms"]:
        edges = [edge - 1 for edge in row["batches_below"]]
        total = frames.get((row["vm"], row["queue"]), 0)
        yield from _histogram(name, _labels("queues", row), row["batches"], edges, total)


def _histogram(
    name: str, labels: Labels, bins: Sequence[int], edges: Sequence[float], total: float
) -> Iterator[str]:
    """Buckets count everything up to their edge."""
    for count, edge in zip(accumulate(bins), [*map(repr, edges), "+Inf"], strict=True):
        yield sample(f"{name}_bucket", {**labels, "le": edge}, count)
    yield sample(f"{name}_sum", labels, total)
    yield sample(f"{name}_count", labels, sum(bins))


def _labels(view: str, row: Row) -> Labels:
    names = LABELS.get(view, {})
    return {names.get(key, key): row[key] for key in NOUNS[view][1]}


def _title(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {kind}"


def family(name: str, kind: str, words: str, samples: Sequence[tuple[Labels, float]]) -> Iterator[str]:
    """One metric with all its labels; nothing, if nobody has it."""
    if samples:
        yield from _title(name, kind, words)
        yield from (sample(name, labels, value) for labels, value in samples)


def sample(name: str, labels: Labels, value: float) -> str:
    """One line."""
    named = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
    return f"{name}{{{named}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
