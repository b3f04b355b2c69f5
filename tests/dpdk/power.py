# SPDX-License-Identifier: Apache-2.0
"""l3fwd-power, DPDK's example of a driver that sleeps until its device calls, built from its Debian package.

It logs each sleep and each wake-up. A frame to 1.1.1.0/24 is routed back to its port.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

from tests.dpdk.lab import PATHS, until
from tests.vm.lab import debs
from tests.vm.lab.errors import LabError
from tests.vm.lab.image import cache_folder

PACKAGE, SOURCES = "dpdk-doc", "usr/share/dpdk/examples/"
LIBRARIES = (
    "power", "lpm", "hash", "timer", "metrics", "ethdev", "net", "mbuf", "mempool", "ring", "eal", "telemetry",
)  # fmt: skip
INCLUDES = ("-include", "rte_config.h", "-I/usr/include/dpdk", "-I/usr/include/x86_64-linux-gnu/dpdk")


def build(folder: Path) -> Path:
    """The program; its sources come from the package's file, which is not installed."""
    deb = debs.fetch([PACKAGE], cache_folder(), lambda _: None)[PACKAGE]
    wanted = tuple(SOURCES + name for name in ("l3fwd-power/", "common/"))
    for name, data in debs.read(deb, lambda name: name.startswith(wanted)).items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    home, program = folder / SOURCES / "l3fwd-power", folder / "l3fwd-power"
    argv = [
        *(
            "gcc",
            "-O1",
            "-w",
            "-march=corei7",
            "-DALLOW_EXPERIMENTAL_API",
            *INCLUDES,
            f"-I{folder / SOURCES}/common",
        ),
        *(str(home / name) for name in ("main.c", "perf_core.c")),
        *("-o", str(program), "-Wl,--as-needed", *(f"-lrte_{name}" for name in LIBRARIES), "-lbsd"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise LabError(f"l3fwd-power cannot be built:\n{done.stderr}")
    return program


class Sleeper:
    """The program, on one front-end."""

    def __init__(self, program: Path, folder: Path, socket: Path, mac: str, cpu: int = 0) -> None:
        self.log_file = folder / "l3fwd.log"
        device = f"net_virtio_user0,path={socket},mac={mac},queues=1,queue_size=1024,{PATHS['mergeable'][0]}"
        self.argv = [
            *("stdbuf", "-oL", str(program), "--lcores", f"0@{cpu}", "--no-pci", "--no-huge", "-m", "256"),
            *("--file-prefix", "power", "--log-level=user1,7", "--vdev", device),
            *("--", "-p", "1", "--config", "(0,0,0)", "--parse-ptype", "--interrupt-only"),
        ]
        self.environment = os.environ | {"RUNTIME_DIRECTORY": str(folder)}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def sleeps(self) -> int:
        return self.log.count("sleeps until interrupt triggers")

    @property
    def wakeups(self) -> int:
        return self.log.count("is waked up from rx interrupt")

    def __enter__(self) -> Self:
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )
        return self

    def asleep_again(self, wakeups: int) -> None:
        """Wait until it was woken so often, and sleeps."""
        until(
            lambda: self.wakeups >= wakeups and self.sleeps == self.wakeups, f"wake-up {wakeups}, and a sleep"
        )

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
