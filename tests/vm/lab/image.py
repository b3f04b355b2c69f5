# SPDX-License-Identifier: Apache-2.0
"""Kernel and initramfs of the guests, made from Debian's packages without root, depmod or cpio.

The kernel is Debian's own, unpacked from its compressed form: an ELF file with a PVH entry, which QEMU starts
directly, because the decompressor costs seconds under emulation. `vmlinuz` is kept for guests that boot from the
network. The initramfs holds a static busybox, the wanted kernel modules with their dependencies (`modprobe` finds
them through a `modules.dep` that we write), the scripts of the folder `guest`, and whole programs with their
libraries, taken from downloaded packages: what is installed on this machine does not matter, and nothing is
installed for it.

    NET      networking only; the fastest to boot
    STORAGE  the same with iSCSI and FCoE, both ends of each

What was made is cached by the versions of the packages and a hash of everything that shapes it, below the folder
of the environment variable VMQ_CACHE, or `.cache/vm` in the checkout; it can be removed at any time.
`python -m tests.vm.lab.image` makes all of it ahead of the tests.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import lzma
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm.lab import debs, elf
from tests.vm.lab.cpio import Archive
from tests.vm.lab.errors import LabError

KERNEL = "linux-image-amd64"
BUSYBOX = "busybox-static"
SCRIPTS = Path(__file__).parent / "guest"

# The packages that hold a program and all of its libraries.
TOOLS = {
    "iscsistart": ("open-iscsi", "libopeniscsiusr", "libkmod2", "liblzma5", "libzstd1", "libssl3", "libc6"),
    "ethtool": ("ethtool", "libmnl0", "libc6"),
    "iperf3": ("iperf3", "libiperf0", "libsctp1", "libssl3", "libc6"),
}


@dataclass(frozen=True)
class Contents:
    """What goes into an initramfs besides busybox and the scripts."""

    modules: tuple[str, ...]
    tools: tuple[str, ...] = ()


NET = Contents(("virtio_pci", "virtio_net", "virtio_rng", "8021q"))
_ISCSI = ("iscsi_target_mod", "iscsi_tcp", "crc32c_generic")
_FCOE = ("fcoe", "tcm_fc")
STORAGE = Contents((*NET.modules, *_ISCSI, *_FCOE, "target_core_file", "sd_mod"), ("iscsistart",))


@dataclass(frozen=True)
class Image:
    """Paths of what QEMU starts."""

    vmlinux: Path
    vmlinuz: Path
    initramfs: Path


def cache_folder() -> Path:
    """Where images are kept; made, and ignored by git, if it was not there."""
    checkout = Path(__file__).resolve().parents[3]
    folder = Path(os.environ.get("VMQ_CACHE") or checkout / ".cache" / "vm")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


@functools.cache
def build(contents: Contents = NET) -> Image:
    """Make what is missing of the image, and return it. One process makes at a time, others wait for it."""
    cache = cache_folder()
    with _locked(cache), _progress_line() as progress:
        progress("looking up packages")
        kernel_package = debs.first_dependency(KERNEL)
        packages = {package for tool in contents.tools for package in TOOLS[tool]}
        fetched = debs.fetch({kernel_package, BUSYBOX, *packages}, cache, progress)
        kernel, busybox = fetched[kernel_package], fetched[BUSYBOX]
        sources = [fetched[package] for package in sorted(packages)]
        digest = _digest(contents, [kernel, busybox, *sources])
        image = Image(
            vmlinux=cache / f"{kernel.stem}.vmlinux",
            vmlinuz=cache / f"{kernel.stem}.vmlinuz",
            initramfs=cache / f"initramfs-{digest}.gz",
        )
        if not (image.vmlinux.exists() and image.initramfs.exists()):
            progress(f"unpacking {kernel.name}")
            files = debs.read(kernel, _of_kernel)
            vmlinuz = next(data for name, data in files.items() if name.startswith("boot/vmlinuz-"))
            _write(image.vmlinuz, vmlinuz)
            _write(image.vmlinux, _unpacked_kernel(vmlinuz))
            progress("packing the initramfs")
            _write(image.initramfs, _initramfs(contents, files, busybox, sources))
        return image


def _of_kernel(name: str) -> bool:
    return name.endswith(("/modules.builtin", ".ko")) or name.startswith("boot/vmlinuz-")


def _digest(contents: Contents, sources: Iterable[Path]) -> str:
    """The name of an initramfs: a hash of its sources' versions, our scripts and this program."""
    shape = hashlib.sha256(repr((contents, sorted(path.name for path in sources))).encode())
    for path in sorted([*SCRIPTS.iterdir(), *Path(__file__).parent.glob("*.py")]):
        if path.parent == SCRIPTS or path.name in {"image.py", "cpio.py", "elf.py"}:
            shape.update(path.name.encode() + b"\0" + path.read_bytes())
    return shape.hexdigest()[:16]


def _unpacked_kernel(vmlinuz: bytes) -> bytes:
    """The ELF file inside. It may lie anywhere, and its magic anywhere else too: the first that unpacks is it."""
    magic = b"\xfd7zXZ\0"
    start = vmlinuz.find(magic)
    while start >= 0:
        try:
            data = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(vmlinuz[start:])
        except lzma.LZMAError:
            data = b""
        if data.startswith(elf.MAGIC):
            return data
        start = vmlinuz.find(magic, start + 1)
    raise LabError("no XZ-compressed ELF file in the kernel")


def _initramfs(contents: Contents, kernel: dict[str, bytes], busybox: Path, sources: list[Path]) -> bytes:
    archive = Archive()
    for folder in ("proc", "sys", "tmp", "etc", "mnt", "var/lib", "run"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.link("etc/mtab", "/proc/self/mounts")
    (program,) = debs.read(busybox, lambda name: name == "bin/busybox").values()
    archive.file("bin/busybox", program, 0o755)
    for script in sorted(SCRIPTS.iterdir()):
        place = "init" if script.name == "init" else f"bin/{script.name}"
        archive.file(place, script.read_bytes(), 0o755)
    _add_modules(archive, contents.modules, kernel)
    files = {name: data for source in sources for name, data in debs.read(source, _of_program).items()}
    _add_tools(archive, contents.tools, files)
    return archive.packed()


def _of_program(name: str) -> bool:
    return "bin/" in name or ".so" in name


def _add_modules(archive: Archive, wanted: Iterable[str], kernel: dict[str, bytes]) -> None:
    """The modules, each with what it depends on, and the `modules.dep` that modprobe reads."""
    release = next(name.split("/")[-1] for name in kernel if name.startswith("boot/")).removeprefix(
        "vmlinuz-"
    )
    modules = {_module_name(name): data for name, data in kernel.items() if name.endswith(".ko")}
    (listed,) = (data for name, data in kernel.items() if name.endswith("/modules.builtin"))
    builtin = {_module_name(line) for line in listed.decode().split()}
    needed: dict[str, list[str]] = {}

    def add(name: str) -> None:
        if name in needed or name in builtin:
            return
        if name not in modules:
            raise LabError(f"the kernel {release} has no module {name}")
        needed[name] = elf.module_dependencies(modules[name])
        for other in needed[name]:
            add(_module_name(other))

    for name in wanted:
        add(name)
    folder = f"lib/modules/{release}"
    for name in needed:
        archive.file(f"{folder}/{name}.ko", modules[name])
    lines = [f"{name}.ko:{''.join(f' {other}.ko' for other in _closure(name, needed))}\n" for name in needed]
    archive.file(f"{folder}/modules.dep", "".join(lines).encode())


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".ko").replace("-", "_")


def _closure(name: str, needed: dict[str, list[str]]) -> list[str]:
    """Everything that a module depends on, each before what it depends on itself, as modules.dep has it."""
    order: list[str] = []

    def visit(module: str) -> None:
        for other in map(_module_name, needed[module]):
            if other in needed and other not in order:
                visit(other)
                order.append(other)

    visit(name)
    return order[::-1]


def _add_tools(archive: Archive, tools: Iterable[str], files: dict[str, bytes]) -> None:
    """The programs and every library that they load, in a folder of their own, started through its loader.

    Were the C library where programs look for it, the static busybox would load parts of it into itself and crash.
    """
    by_name = {path.rpartition("/")[2]: data for path, data in files.items()}
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        if name not in by_name:
            raise LabError(f"no package of TOOLS has {name}")
        added.add(name)
        archive.file(f"tools/{name}", by_name[name], 0o755)
        for library in elf.libraries(by_name[name]):
            add(library)

    for tool in tools:
        add(tool)
        loader = elf.loader(by_name[tool]).rpartition("/")[2]
        add(loader)
        start = f'#!/bin/sh\nexec /tools/{loader} --library-path /tools /tools/{tool} "$@"\n'
        archive.file(f"bin/{tool}", start.encode(), 0o755)


def _write(path: Path, data: bytes) -> None:
    """All or nothing: a reader sees the old file or the whole new one."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress_line() -> Iterator[debs.Progress]:
    """Shows one line on a terminal that is written over; elsewhere one line for each step that took long."""
    shown = time.monotonic()
    terminal = sys.stderr.isatty()

    def progress(text: str) -> None:
        nonlocal shown
        if terminal:
            sys.stderr.write(f"\r\x1b[Kguest image: {text}")
        elif time.monotonic() - shown > 5:
            sys.stderr.write(f"guest image: {text}\n")
            shown = time.monotonic()
        sys.stderr.flush()

    yield progress
    if terminal:
        sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    for wanted in (NET, STORAGE):
        made = build(wanted)
        sys.stdout.write(f"{made.vmlinux}\n{made.initramfs}  {made.initramfs.stat().st_size >> 10} KiB\n")
