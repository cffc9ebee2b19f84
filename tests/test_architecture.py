"""The layers of the package: who may import whom (docs/design.md)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "densenet_jax"
# Each part of the package and the parts that it may import.
MAY_IMPORT = {
    "__init__": {"models", "weights", "training", "export"},
    "nnx": {"load_pretrained", "models"},
    "configs": {"configs", "weights"},
    "atomic_files": set(),
    "terminal": set(),
    "user_cache": set(),
    "models": {"models"},
    "weights": {"weights", "models", "tasks"},
    "data": {"data"},
    "scores": {"scores"},
    "tasks": {"tasks", "scores"},
    "training": {"training", "models", "weights", "data", "tasks", "configs"},
    "evaluation": {"evaluation", "training", "data", "tasks", "scores"},
    "report": {"report", "evaluation", "training", "models", "data", "tasks", "scores", "configs"},
    "dossier": {"dossier", "report", "evaluation", "training", "models", "data", "tasks", "scores"},
    "prediction": {"prediction", "report", "weights", "data", "tasks", "scores"},
    "export": {"export", "training", "models", "weights", "data", "tasks", "scores"},
    "benchmark": {"benchmark", "training", "models", "data", "tasks"},
    "cli": {
        *("cli", "training", "models", "weights", "data", "tasks", "evaluation", "report"),
        *("dossier", "prediction", "benchmark", "export", "configs", "scores"),
    },
    "__main__": {"cli"},
}
ALL = {"atomic_files", "terminal", "user_cache"}  # what every part may import
# Folders that only their own part may import from.
PRIVATE = ("models.gpu", "models.cpu", "models.tpu", "weights.readers", "data.preparing")


def imported(path: pathlib.Path) -> set[str]:
    """Returns the modules of the package that a file imports from, without `densenet_jax.`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.append("densenet_jax.relative")  # always absolute, so that it can be read here
        elif isinstance(node, ast.ImportFrom) and node.module == "densenet_jax":
            names += [f"densenet_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {
        name.removeprefix("densenet_jax.") for name in names if name.startswith("densenet_jax.")
    }


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"{part} is new: give it a place in MAY_IMPORT"
    assert {name.split(".")[0] for name in imported(path)} <= MAY_IMPORT[part] | ALL
    for name in imported(path):
        folder = ".".join(name.split(".")[:2])
        assert folder not in PRIVATE or part == folder.split(".")[0], f"{folder} is private"


def test_folders_stay_small():
    for folder in (p for p in PACKAGE.rglob("*") if p.is_dir() and "configs" not in p.parts):
        assert len(set(folder.glob("*.py")) - {folder / "__init__.py"}) <= 22, (
            f"{folder.name}: give its parts a folder"
        )


def test_main_is_short_and_imports_the_command_line_alone():
    main = ROOT / "main.py"
    assert imported(main) == {"__main__.main"}
    assert len(main.read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_what_is_printed_is_printable(path):
    """Names from files could steer the terminal; `terminal` escapes them, print and rich do not."""
    names = {
        name.id for name in ast.walk(ast.parse(path.read_text())) if isinstance(name, ast.Name)
    }
    allowed = ("terminal.py", "__main__.py", "load_stablehlo.py", "processes.py")
    assert "print" not in names or path.name in allowed or path.parts[-2:] == ("cli", "__init__.py")
    assert "rich.console" not in path.read_text() or path.name == "terminal.py"
