"""Data flows down one stair: who may import whom (docs/design.md)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "densenet_jax"
MAY_IMPORT = {
    # training only when a run is read, export when something is published
    "__init__": {"models", "weights", "training", "export"},
    "configs": {"configs", "weights"},
    "config_files": set(),
    "invocation": set(),
    "models": {"models"},
    "weights": {"weights", "models"},
    "data": {"data"},
    "evaluation": set(),
    "training": {"training", "models", "weights", "data", "evaluation", "configs"},
    "assessment": {"assessment", "training", "data", "evaluation"},
    "report": {"report", "assessment", "training", "models", "data", "evaluation", "configs"},
    "predict": {"report", "weights", "data"},
    "export": {"export", "training", "models", "weights", "data"},
    "benchmark": {"benchmark", "training", "models", "data", "evaluation"},
    "sweep": {"training"},
    "commands": {
        *("training", "models", "weights", "data", "assessment", "report", "predict", "sweep"),
        *("benchmark", "export", "evaluation", "invocation"),
    },
    "cli": {"cli", "commands", "training", "configs", "config_files", "invocation"},
    "__main__": {"cli"},
}


def imported_parts(path: pathlib.Path) -> set[str]:
    """Returns the first-level parts of the package that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.append("densenet_jax.relative")  # always absolute, so that it can be read here
        elif isinstance(node, ast.ImportFrom) and node.module == "densenet_jax":
            names += [f"densenet_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return {name.split(".")[1] for name in names if name.startswith("densenet_jax.")}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"{part} is new: give it a place on the stair"
    assert imported_parts(path) <= MAY_IMPORT[part]


def test_main_is_short_and_imports_the_command_line_alone():
    main = ROOT / "main.py"
    assert imported_parts(main) == {"__main__"}
    assert len(main.read_text(encoding="utf-8").splitlines()) < 80
