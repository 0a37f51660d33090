"""The rooms of utils/: which may import which, and that no module needs itself."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from utils.paths import REPOSITORY

ROOMS = (
    "errors",
    "settings",
    "paths",
    "files",
    "behaviors",
    "data",
    "model",
    "vectors",
    "judge",
    "evaluation",
    "figures",
    "inside",
    "report",
    "exports",
    "chat",
    "authoring",
    "finetuning",
    "saes",
    "research",
    "cli",
)  # a room imports from those before it
UTILS = REPOSITORY / "utils"
MODULES = sorted(path for path in UTILS.rglob("*.py") if path.name != "__init__.py")
# the progress line of long work is the one thing of the command line that other rooms use
PROGRESS = "utils.cli.progress"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def room_of(module: str) -> str:
    return module.split(".")[1]


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Modules of the project that a module imports when it runs, wherever in it."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return  # annotations only
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update(_resolved(node))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


def _resolved(node: ast.ImportFrom) -> Iterator[str]:
    module = node.module or ""
    if module.split(".")[0] not in ("utils", "llama_wrapper"):
        return
    for alias in node.names:
        inside = REPOSITORY.joinpath(*module.split("."), f"{alias.name}.py")
        yield f"{module}.{alias.name}" if inside.exists() else module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_from_later_rooms_to_earlier_ones(path: Path) -> None:
    own = ROOMS.index(room_of(name_of(path)))
    for module in imports_of(path):
        assert not module.startswith("llama_wrapper"), f"{name_of(path)} imports the wrapper"
        if module != PROGRESS:
            assert ROOMS.index(room_of(module)) <= own, f"{name_of(path)} imports {module}"


def test_no_module_imports_itself_round_a_circle() -> None:
    waiting = {name_of(path): {m for m in imports_of(path) if m != "utils"} for path in MODULES}
    while leaves := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {name: needs for name, needs in waiting.items() if name not in leaves}
    assert not waiting


def test_every_room_is_named_in_the_order() -> None:
    there = {path.stem for path in UTILS.iterdir() if path.suffix in ("", ".py")}
    assert there - {"__init__", "__pycache__"} == set(ROOMS)


@pytest.mark.parametrize("room", ["evaluation", "figures", "inside", "report", "exports", "chat"])
def test_a_room_takes_requests_and_knows_nothing_of_the_command_line(room: str) -> None:
    for path in MODULES:
        if room_of(name_of(path)) == room:
            assert "argparse" not in path.read_text(encoding="utf-8"), name_of(path)
