"""The notebooks run from top to bottom, as on Colab, and are stored without their output."""

import importlib.util
import os
import pathlib
import re
import runpy
import shutil
import sys

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EPOCHS = re.compile(r"^(.*_epochs = .*?)\d+\.0$", re.MULTILINE)
# The packages that the first cell looks for.
NEEDED = {"densenet_jax", "flax", "grain", "ml_collections", "optax", "orbax", "sklearn"}


def code_cells(path: pathlib.Path) -> list[str]:
    notebook = nbformat.read(path, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == ["finetune", "insight", "medical", "quickstart"]


@pytest.fixture
def checkout(tmp_path):
    """A folder with what makes a checkout, so that notebooks write nothing into the real one."""
    (tmp_path / "densenet_jax").symlink_to(ROOT / "densenet_jax")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    (tmp_path / "notebooks").mkdir()
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, checkout, monkeypatch):
    one_device = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    monkeypatch.setenv("XLA_FLAGS", one_device)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the first cell finds the package
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("IPYTHONDIR", str(checkout / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = EPOCHS.sub(r"\g<1>1.0", cell.source)  # training is not what is tested here
    found = f"import densenet_jax; assert densenet_jax.__file__.startswith({str(checkout)!r})"
    notebook.cells.append(nbformat.v4.new_code_cell(found))
    place = {"metadata": {"path": str(checkout / "notebooks")}}
    NotebookClient(notebook, timeout=300, resources=place).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures
    assert os.listdir(checkout / "notebooks/runs")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_clean_and_says_what_an_accelerator_changes(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "On a GPU or a TPU" in notebook.cells[0].source
    assert any('config.model.dtype = "auto"' in cell for cell in code_cells(path))
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def first_cell(monkeypatch, present: set[str], installs: set[str], package: str = "") -> list[str]:
    """Runs the first cell where only the packages in `present` exist; returns pip's arguments.

    Args:
      present: the packages that exist.
      installs: those that exist after pip, too.
      package: value of PACKAGE.
    """
    cells = {code_cells(path)[0] for path in NOTEBOOKS}
    assert len(cells) == 1  # the same in every notebook
    source = re.sub(r'^PACKAGE = ".*?"', f'PACKAGE = "{package}"', cells.pop(), flags=re.MULTILINE)
    source = re.sub(r"%pip install (.*)", r'pip(f"\1")', source)
    present, calls = set(present), []

    def pip(arguments: str) -> None:
        calls.append(arguments.strip())
        present.update(installs)

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in present or None)
    exec(source, {"pip": pip})
    return calls


def test_without_a_checkout_the_first_cell_stops_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^densenet_jax cannot be imported: [^.]*\.$"):
        first_cell(monkeypatch, NEEDED - {"densenet_jax"}, set())
    with pytest.raises(SystemExit, match="set PACKAGE"):  # pip failed
        first_cell(monkeypatch, set(), set(), "git+https://x")


def test_the_first_cell_installs_what_is_missing_and_nothing_else(checkout, monkeypatch):
    monkeypatch.chdir(checkout / "notebooks")
    assert first_cell(monkeypatch, NEEDED, set()) == []
    needs = f"-q -r '{checkout}/requirements.txt'"
    assert first_cell(monkeypatch, {"densenet_jax"}, NEEDED) == [needs]
    monkeypatch.chdir(checkout.parent)
    assert first_cell(monkeypatch, set(), NEEDED, "git+https://x") == ["-q git+https://x"]
    assert first_cell(monkeypatch, NEEDED, set(), "git+https://x") == []


def test_the_first_cell_prefers_the_checkout_to_an_installed_package(checkout, monkeypatch):
    monkeypatch.chdir(checkout / "notebooks")
    first_cell(monkeypatch, NEEDED, set())
    assert sys.path[0] == str(checkout)


def test_address_writes_badges_and_what_is_installed(tmp_path, monkeypatch):
    notebooks = shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    before = [path.read_bytes() for path in NOTEBOOKS]
    for argv in (["me/fork", "dev"], ["me/fork"], [""]):
        monkeypatch.setattr(sys, "argv", ["address.py", *argv])
        runpy.run_path(str(notebooks / "address.py"), run_name="__main__")
        branch = argv[1] if len(argv) == 2 else "main"
        for path in sorted(notebooks.glob("*.ipynb")):
            page, package = "https://colab.research.google.com/github/", ""
            if argv[0]:
                page += f"me/fork/blob/{branch}/notebooks/{path.name}"
                package = f"git+https://github.com/me/fork@{branch}"
            assert f"colab-badge.svg)]({page})" in nbformat.read(path, 4).cells[0].source
            assert f'\nPACKAGE = "{package}"' in code_cells(path)[0]
    assert [(notebooks / path.name).read_bytes() for path in NOTEBOOKS] == before
