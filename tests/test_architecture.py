# SPDX-License-Identifier: Apache-2.0
"""The rules of the architecture that import-linter cannot say: what a file may hold, cite and name.

Sources are read, not imported, so a rule holds for a file that does not run yet, and a broken file breaks one rule.
Each test lists every violation as `file:line: what`. A limit here is a hard stop; review asks for less.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VMQ, TESTS, DOCS = ROOT / "vmq", ROOT / "tests", ROOT / "docs"
FILE_LINES, FUNCTION_LINES = 450, 60

Function = ast.FunctionDef | ast.AsyncFunctionDef

# What is allowed to stand in abi/ beside layouts and numbers: sizes that follow from a layout, notations of a number.
ABI_FUNCTIONS = {
    "layout.py": {"layout", "packed", "rows", "offset", "_checked"},
    "virtio.py": {"split_ring_bytes"},
    "ethernet.py": {"mac_number", "mac_text"},
}
# Tests of what is larger than one source file.
WITHOUT_SOURCE = {"test_administrators.py", "test_architecture.py", "test_conformance.py", "test_conftest.py"}
FOLDERS_WITHOUT_SOURCE = {"vm", "dpdk", "hostile", "bench", "mistakes"}


def sources(folder: str = "") -> list[Path]:
    found = sorted((VMQ / folder).rglob("*.py"))
    assert found, f"vmq/{folder} holds no source"
    return found


def nothing(violations: Iterable[str]) -> None:
    """Fail with every violation on a line of its own."""
    if text := "\n".join(violations):
        pytest.fail(f"\n{text}", pytrace=False)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name(path))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, wherever the import stands."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def foreign(folder: str, allowed: set[str]) -> list[str]:
    def is_allowed(imported: str) -> bool:
        parts = imported.split(".")
        return any(".".join(parts[:depth]) in allowed for depth in range(1, len(parts) + 1))

    return [
        f"{name(path)}:{line}: {imported}"
        for path in sources(folder)
        for line, imported in imports(path)
        if not is_allowed(imported)
    ]


def test_data_plane_imports_only_what_kernels_may_use():
    """Kernels talk to nothing: numbers, the compiler's one door, other people's layouts."""
    nothing(
        foreign(
            "dataplane", {"__future__", "numpy", "typing", "vmq.jit", "vmq.clock", "vmq.abi", "vmq.dataplane"}
        )
    )


def test_built_in_guest_shares_only_layouts_compiler_and_clock_with_the_engine():
    """A front-end that shared the engine's code would confirm its mistakes."""
    own = {"vmq.jit", "vmq.clock", "vmq.linux", "vmq.abi", "vmq.errors", "vmq.guest"}
    nothing(foreign("guest", {"numpy", *own, *sys.stdlib_module_names}))


def test_only_two_files_call_c():
    """What reaches past Python's safety is read in two places."""
    nothing(
        f"{name(path)}:{line}: {imported}"
        for path in sources()
        for line, imported in imports(path)
        if imported.split(".")[0] in ("ctypes", "cffi") and path not in (VMQ / "jit.py", VMQ / "linux.py")
    )


def bases(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).rpartition(".")[2] for base in node.bases}


def test_abi_declares_and_does_nothing_else():
    """Other people's layouts and numbers have no behaviour of ours."""
    nothing(
        f"{name(path)}:{node.lineno}: {node.name}"
        for path in sources("abi")
        for node in ast.walk(tree(path))
        if (isinstance(node, Function) and node.name not in ABI_FUNCTIONS.get(path.name, ()))
        or (isinstance(node, ast.ClassDef) and not {"Enum", "IntEnum", "IntFlag"} & bases(node))
    )


def test_every_source_has_its_test_file():
    """vmq/x/y.py is tested by tests/x/test_y.py; a file with a dunder name only when it defines something."""
    missing = []
    for path in sources():
        bare = path.stem.strip("_")
        if bare != path.stem and not any(
            isinstance(node, Function | ast.ClassDef) for node in tree(path).body
        ):
            continue
        test = TESTS / path.relative_to(VMQ).with_name(f"test_{bare}.py")
        if not test.exists():
            missing.append(f"{name(path)}: {name(test)} is missing")
    nothing(missing)


def test_every_unit_test_has_its_source():
    """A test file whose source was renamed is renamed with it."""
    orphans = []
    for test in sorted(TESTS.rglob("test_*.py")):
        inner = test.relative_to(TESTS)
        if inner.name in WITHOUT_SOURCE or inner.parts[0] in FOLDERS_WITHOUT_SOURCE:
            continue
        bare = test.stem.removeprefix("test_")
        if not any((VMQ / inner.parent / f"{stem}.py").exists() for stem in (bare, f"__{bare}__")):
            orphans.append(name(test))
    nothing(orphans)


def specification_tags() -> dict[str, bool]:
    """The tags of docs/specs.md, each with whether its sections have numbers."""
    rows = re.findall(r"^\| `([^`]+)` \|.*\| ([^|]+) \|$", (DOCS / "specs.md").read_text(), re.MULTILINE)
    return {tag: "§" in cited for tag, cited in rows}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Runs of comments and docstrings, each as one line of text, with the line where it begins."""
    start, last = 0, -1
    words: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            row = token.start[0]
            if row != last + 1:
                yield start, " ".join(words)
                start, words = row, []
            words.append(token.string.lstrip("# "))
            last = row
    yield start, " ".join(words)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, " ".join(text.split())


# tag § number title: `virtio-1.2 §2.7.8 The Virtqueue Used Ring`
SECTION = re.compile(r"(?P<tag>[\w.+-]*) ?§ ?(?P<number>[A-Z]?[\d.]*\d)?(?: (?P<title>[A-Z0-9][\w-]*))?")


def cited() -> Iterator[tuple[str, re.Match[str]]]:
    for path in sources():
        for line, text in prose(path):
            yield from ((f"{name(path)}:{line}", match) for match in SECTION.finditer(text))


def test_citations_carry_tag_number_and_title():
    """The tag resolves in docs/specs.md; the title survives renumbering."""
    tags = specification_tags()
    wrong = [
        f"{where}: {match[0]!r}"
        for where, match in cited()
        if not (tags.get(match["tag"]) and match["number"] and match["title"])
    ]
    nothing(wrong)


def test_one_section_has_one_title():
    """Two titles for one number: one of the citations is of another version."""
    titles: dict[tuple[str, str], dict[str, str]] = {}
    for where, match in cited():
        if match["number"] and match["title"]:
            titles.setdefault((match["tag"], match["number"]), {}).setdefault(match["title"], where)
    nothing(f"{tag} §{number}: {found}" for (tag, number), found in titles.items() if len(found) > 1)


def test_tags_resolve_and_virtio_is_pinned():
    """One version of virtio, and headers that docs/specs.md lists."""
    tags = specification_tags()
    found = re.compile(r"\b(?:virtio-\d[\d.]*\d|linux-[\w/]+\.h|ieee-[\w.]+\w|rfc-\d+|t11-[\w.-]+\w)\b")
    wrong = [
        f"{name(path)}: {tag}"
        for path in sources()
        for tag in sorted(set(found.findall(path.read_text())))
        if tag not in tags
    ]
    nothing(wrong)
    assert [tag for tag in tags if tag.startswith("virtio-")] == ["virtio-1.2"]


def test_only_the_command_line_prints():
    """What speaks to a person stands in one place; everything else logs or returns."""
    nothing(
        f"{name(path)}:{node.lineno}"
        for path in sources()
        if path.relative_to(VMQ).parts[0] not in ("cli", "demo.py", "demo_direct.py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def test_numbers_of_a_specification_stand_in_abi():
    """A hex literal is somebody's number: other people's in abi/, ours in dataplane/state.py."""
    found = []
    for path in sources():
        if path.is_relative_to(VMQ / "abi") or path == VMQ / "dataplane" / "state.py":
            continue
        found += [
            f"{name(path)}:{token.start[0]}: {token.string}"
            for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            if token.type == tokenize.NUMBER and token.string.lower().startswith("0x")
        ]
    nothing(found)


def test_functions_and_files_are_short():
    """One concept a file, one step a function."""
    long = [
        f"{name(path)}:{node.lineno}: {node.name} has {lines} lines"
        for path in sources()
        for node in functions(path)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]
    long += [
        f"{name(path)} has {lines} lines"
        for path in sources()
        if (lines := len(path.read_text().splitlines())) > FILE_LINES
    ]
    nothing(long)


def test_functions_named_in_the_architecture_exist():
    """docs/architecture.md tells the way of a frame by function names: `like_this()`."""
    defined = {
        node.name
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, Function | ast.ClassDef)
    }
    text = "".join((DOCS / name).read_text() for name in ("architecture.md", "conformance.md"))
    named = {found.rpartition(".")[2] for found in re.findall(r"`([\w.]+)\([^`)]*\)`", text)}
    nothing(sorted(named - defined))
    assert named, "docs/architecture.md names no function"


def test_tests_named_in_the_documents_exist() -> None:
    """docs/conformance.md names a test for every demand."""
    written = {
        node.name
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(tree(path))
        if isinstance(node, Function)
    }
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "conformance.md").read_text()))
    nothing(sorted(named - written))
    assert named


def drop_names() -> list[str]:
    """The names in the table DROPS of dataplane/reasons.py: pairs of name and sentence."""
    for node in tree(VMQ / "dataplane" / "reasons.py").body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Tuple):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name) and target.id == "DROPS":
            return [ast.literal_eval(row)[0] for row in node.value.elts]
    raise AssertionError("vmq/dataplane/reasons.py has no table DROPS")


def test_every_named_drop_is_counted_somewhere():
    """A kernel loads the constant of each drop, NAME or PREFIX_NAME: a row that nothing counts is a promise unkept."""
    used = {
        node.id if isinstance(node, ast.Name) else node.attr
        for path in sources("dataplane")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    nothing(
        drop
        for drop in drop_names()
        if not any(word == drop.upper() or word.endswith(f"_{drop.upper()}") for word in used)
    )


def test_every_python_file_names_its_licence():
    """One SPDX line a file; the text of the licence stands once, in LICENSE."""
    first = "# SPDX-License-Identifier: Apache-2.0\n"
    files = [path for folder in ("vmq", "tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
    nothing(name(path) for path in files if not path.read_text().startswith(first))


# The hosts that a file may name: of the licence, of forms that our own documents follow, of specifications.
HOSTS = {
    "www.apache.org",
    "keepachangelog.com",
    "semver.org",
    "docs.oasis-open.org",
    "www.qemu.org",
    "www.kernel.org",
    "www.rfc-editor.org",
    "standards.ieee.org",
    "libvirt.org",
    "json-schema.org",
    "no-color.org",
    "www.w3.org",  # the name of SVG
}
TEXT = {".py", ".md", ".toml", ".in", ".lock", ".txt", ".debian", ""}


def test_no_file_names_a_registry_or_a_machine():
    """Where packages come from is the user's to configure; where somebody's checkout lies is nobody's business."""
    folders = (ROOT / folder for folder in (".ci", "vmq", "tests", "docs", "bench", "requirements"))
    files = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.glob("*"))
    url = re.compile(r"https?://([\w.-]+\.[a-z]{2,})")
    place = re.compile(r"(?<![\w.$}/])/(?:root|home/\w+|work)/|--(?:extra-)?index-url")
    found = []
    for path in sorted(files):
        if not path.is_file() or path.suffix not in TEXT or path == Path(__file__).resolve():
            continue
        text = path.read_text(errors="replace")
        found += [f"{name(path)}: {host}" for host in url.findall(text) if host not in HOSTS]
        found += [f"{name(path)}: {match}" for match in place.findall(text)]
    nothing(found)


def requirement_names(lines: list[str]) -> list[str]:
    return [match[0] for line in lines if (match := re.match(r"[A-Za-z][\w-]*", line))]


def test_dependencies_are_declared_alike_and_justified():
    """pyproject.toml and run.in agree; docs/dependencies.md has one line for each direct dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    run, dev, man = (
        [line for line in (ROOT / f"requirements/{stem}.in").read_text().splitlines() if line[:1].isalnum()]
        for stem in ("run", "dev", "man")
    )
    assert sorted(project["project"]["dependencies"] + project["build-system"]["requires"]) == sorted(run)

    justified = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "dependencies.md").read_text(), re.MULTILINE)
    assert sorted(justified) == sorted(requirement_names(run + dev + man))
