"""The house: imports go one way and in no circle, files and functions stay short enough to read."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folder (or "programs", the files at the top): what it may import of the repository, besides itself.
ALLOWED = {
    "optim": set(),
    "model": set(),
    "cli": set(),
    "data": {"cli"},
    "config": set(),
    "runtime": {"optim", "model", "data", "cli"},
    "evaluation": {"runtime", "optim", "model", "data", "cli"},
    "study": {"runtime", "optim", "model", "data", "cli"},
    "programs": {"study", "evaluation", "runtime", "optim", "model", "data", "cli"},
    "experiments": {"study", "evaluation", "runtime", "optim", "model", "data", "cli"},
    "benchmarks": {"programs", "study", "evaluation", "runtime", "optim", "model", "data", "cli"},
}


def product() -> list[Path]:
    """The Python files that git knows or would add, without tests."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    found = [ROOT / name for name in listed if not name.startswith("tests/") and (ROOT / name).exists()]
    return found or [path for path in ROOT.rglob("*.py") if not {"tests", ".venv"} & {*path.relative_to(ROOT).parts}]


def room(module: str) -> str:
    top = module.partition(".")[0]
    return top if top in ALLOWED else "programs"


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that a module imports, anywhere in it; `from a import b` is a and a.b."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{above}.{base}" if base else above
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def import_graph() -> dict[str, set[str]]:
    """{module: modules of the repository that it imports}."""
    paths = {}
    for path in product():
        parts = path.relative_to(ROOT).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in paths.items():
        found = imported(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py")
        graph[module] = {name for name in found if name in paths and name != module}
    return graph


def against_the_direction(graph: Mapping[str, set[str]]) -> list[str]:
    wrong = []
    for module, targets in graph.items():
        for target in targets:
            here, there = room(module), room(target)
            if here == there == "programs" or (here != there and there not in ALLOWED[here]):
                wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of a circle, if there is one; a package may import its own modules, which import it."""
    within = {m: {t for t in targets if not m.startswith(f"{t}.")} for m, targets in graph.items()}
    try:
        TopologicalSorter(within).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_go_one_way() -> None:
    graph = import_graph()
    assert len(graph) > 60 and {"train", "runtime.checkpoint", "optim.engine"} <= graph.keys()
    assert "runtime.settings" in graph["train"] and "optim.rule" in graph["optim.engine"]
    assert against_the_direction(graph) == []
    assert circle(graph) == []


def test_a_wrong_import_would_be_found() -> None:
    graph = {"train": {"sample"}, "runtime.a": {"train"}, "optim.b": {"model"}, "experiments.c": {"runtime.a"}}
    assert against_the_direction(graph) == [
        "optim.b imports model", "runtime.a imports train", "train imports sample"]  # fmt: skip
    assert set(circle({"runtime.a": {"runtime.b"}, "runtime.b": {"runtime.c"}, "runtime.c": {"runtime.a"}})) == {
        "runtime.a", "runtime.b", "runtime.c"}  # fmt: skip


def test_optim_imports_torch_alone() -> None:
    for path in (ROOT / "optim").glob("*.py"):
        for name in imported(ast.parse(path.read_text()), f"optim.{path.stem}", path.name == "__init__.py"):
            top = name.partition(".")[0]
            assert top in {"optim", "torch"} or top in sys.stdlib_module_names, f"{path.name}: {name}"


@pytest.mark.parametrize("path", product(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_450_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_train_is_one_page() -> None:
    text = (ROOT / "train.py").read_text()
    assert len(text.splitlines()) <= 320
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert {"main", "train", "set_up", "accumulate", "evaluate"} <= {function.name for function in functions}
    for function in functions:
        assert (function.end_lineno or 0) - function.lineno < 60, function.name
