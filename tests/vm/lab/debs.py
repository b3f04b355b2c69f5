# SPDX-License-Identifier: Apache-2.0
"""Debian packages as files: found with apt's lists, downloaded, read in place, never installed.

`fetch` gives the newest version that apt knows, from the cache when it is there. Lists that are missing or too old
(the archive then answers 404) are brought up to date when we are root, and the download is tried again. When that
does not help, the newest cached copy serves, so that a machine which worked once works again without a network.

Packages are read through `dpkg-deb --fsys-tarfile`, a stream: no root, and no file of a package touches the disk.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tests.vm.lab.errors import LabError

TRIES = 3
DOWNLOAD_SECONDS = 600
LIMITS = ("-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")

Progress = Callable[[str], None]


def _apt(argv: list[str], where: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        argv,
        cwd=where,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_SECONDS,
        check=False,
    )


def records(packages: Iterable[str]) -> dict[str, dict[str, str]]:
    """The fields of each package's newest version in apt's lists; a package they do not have is left out."""
    shown = _apt(["apt-cache", "show", "--no-all-versions", *packages])
    fields = (
        dict(re.findall(r"^([A-Z][\w-]*): (.*)$", text, re.MULTILINE)) for text in shown.stdout.split("\n\n")
    )
    return {entry["Package"]: entry for entry in fields if "Version" in entry}


def first_dependency(package: str) -> str:
    """The package that a metapackage stands for."""
    found = records([package])
    if not found:
        _update()
        found = records([package])
    if not found:
        raise LabError(f"apt does not know {package}: run apt-get update")
    return found[package]["Depends"].split()[0].rstrip(",")


def fetch(packages: Iterable[str], cache: Path, progress: Progress) -> dict[str, Path]:
    """The packages' files by name, downloaded unless the cache has this version."""
    found: dict[str, Path] = {}
    missing, complaint = set(packages), "apt does not know it"
    for attempt in range(TRIES):
        for package, fields in records(missing).items():
            path = cache / f"{package}_{fields['Version'].replace(':', '%3a')}.deb"
            if not path.exists():
                complaint = _download(package, path, int(fields["Size"]), progress)
            if path.exists():
                found[package] = path
        missing -= found.keys()
        if not missing:
            return found
        _update()
        time.sleep(2 * attempt)
    for package in missing:
        cached = sorted(cache.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        if not cached:
            raise LabError(f"cannot download the package {package}: {complaint}")
        found[package] = cached[-1]
    return found


def _update() -> None:
    """Bring apt's lists up to date, where we may; a failure shows at the next download."""
    if os.geteuid() == 0:
        _apt(["apt-get", "-q=2", *LIMITS, "update"])


def _download(package: str, path: Path, size: int, progress: Progress) -> str:
    """Put the package at `path`; return apt's complaint, empty when there is none."""
    with tempfile.TemporaryDirectory(dir=path.parent) as part, tempfile.TemporaryFile() as log:
        argv = ["apt-get", "-q=2", *LIMITS, "download", package]
        with subprocess.Popen(argv, cwd=part, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as apt:
            deadline = time.monotonic() + DOWNLOAD_SECONDS
            while apt.poll() is None:
                done = sum(file.stat().st_size for file in Path(part).iterdir())
                progress(f"{package}: {done >> 20} of {size >> 20} MiB")
                if time.monotonic() > deadline:
                    apt.kill()
                time.sleep(0.1)
        found = list(Path(part).glob("*.deb"))
        if apt.returncode == 0 and found:
            found[0].replace(path)
        log.seek(0)
        return log.read().decode(errors="replace").strip()


@contextmanager
def _opened(deb: Path) -> Iterator[tarfile.TarFile]:
    """The package's content as a stream of members."""
    argv = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE) as unpack,
        tarfile.open(fileobj=unpack.stdout, mode="r|") as members,
    ):
        yield members
    if unpack.returncode:
        raise LabError(f"{deb.name} is damaged: remove it from {deb.parent}")


def read(deb: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files by path (`usr/bin/x`); a symbolic link carries what it points to inside the package."""
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    with _opened(deb) as members:
        for member in members:
            name = member.name.removeprefix("./")
            if member.isfile() and wanted(name):
                content = members.extractfile(member)
                files[name] = content.read() if content else b""
            elif member.issym() and wanted(name):
                links[name] = str(PurePosixPath(name).parent / member.linkname)
    for name, target in links.items():
        if target in files:
            files[name] = files[target]
    return files
