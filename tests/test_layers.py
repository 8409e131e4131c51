"""The package has no circular imports. `tests/rust/layers.rs` checks the same for Rust."""

import ast
import graphlib
from pathlib import Path

import pytest

PYTHON = Path(__file__).parent.parent / "python"


def read_modules(root: Path) -> dict[str, Path]:
    """The files below a folder, by the names of their modules; a stub stands for an extension module."""
    modules = {}
    for path in sorted([*root.rglob("*.pyi"), *root.rglob("*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def read_imports(modules: dict[str, Path]) -> dict[str, set[str]]:
    """For each module, the modules that it imports: anywhere in its file, in functions and for type checkers too.

    A stub has no imports here: its import lines name types, and loading the extension module imports nothing.
    """
    return {name: _imports_of(name, path, modules) for name, path in modules.items() if path.suffix == ".py"}


def _imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # what is imported from a package is one of its modules, or a name in its `__init__`
            members = (f"{source}.{alias.name}" for alias in node.names)
            found.update(member if member in modules else source for member in members)
    return found & modules.keys() - {name}


def find_circle(imports: dict[str, set[str]]) -> list[str] | None:
    """Return the modules of a circular import, the first again at the end; None if there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return None


def test_no_modules_import_each_other_round_a_circle() -> None:
    imports = read_imports(read_modules(PYTHON))
    assert imports["tantor"] >= {"tantor.flask", "tantor.messenger"}, "the imports are not read"
    circle = find_circle(imports)
    assert circle is None, "a circle of imports: " + " -> ".join(circle)


@pytest.mark.parametrize(
    "source",
    [
        "import package.second",
        "from package import second",
        "from package.second import thing",
        "from . import second",
        "from .second import thing",
        "from ..package.second import thing",
        "def call():\n    from package.second import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.second import Thing",
    ],
)
def test_a_circle_is_found(tmp_path: Path, source: str) -> None:
    for name, text in {"__init__": "", "first": source, "second": "import package.third", "third": ""}.items():
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / f"{name}.py").write_text(text)
    assert find_circle(read_imports(read_modules(tmp_path))) is None
    (tmp_path / "package" / "third.py").write_text("from package.first import call")
    circle = find_circle(read_imports(read_modules(tmp_path)))
    assert circle is not None
    assert circle[0] == circle[-1]
    assert set(circle) == {"package.first", "package.second", "package.third"}


def test_a_package_that_imports_its_user_is_a_circle(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from .first import thing")
    (tmp_path / "package" / "first.py").write_text("thing = 1")
    assert find_circle(read_imports(read_modules(tmp_path))) is None
    (tmp_path / "package" / "first.py").write_text("from package import other")
    assert find_circle(read_imports(read_modules(tmp_path))) is not None
