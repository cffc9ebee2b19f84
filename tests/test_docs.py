"""Every block of code in the documentation runs, and the site is built without a warning.

```python and ```sh blocks of a page run in order, in one namespace and one folder, in which
`runs/digits` is a small run. An HTML comment right above a block changes that:

  <!-- not run: REASON -->   for what installs, downloads or takes hours
  <!-- parsed: REASON -->    commands are understood, flags and keys and all, but not carried out
  <!-- traced: REASON -->    Python that takes long: shapes are computed, numbers are not
  <!-- before: CODE -->      Python that runs first and that readers do not need to see
"""

import functools
import operator
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import jax
import pytest

import densenet_jax
from densenet_jax import cli
from densenet_jax.cli import verifying
from densenet_jax.data import prepare
from densenet_jax.dossier import robustness
from densenet_jax.models import variants
from tests.random_variables import random_variables

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!--(?P<note>(?:(?!-->).)*)-->\s*\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
OTHER_LANGUAGES = ("text", "json", "yaml", "toml")
# What makes a run on the digits small enough.
TINY = [
    "--config.total_steps=1",
    "--config.model.bottleneck=False",
    "--config.model.depth=7",
    "--config.model.growth_rate=4",
    "--config.data.image_size=8",
    "--config.mesh.data=1",
    "--config.augment.mixup=0",
    "--config.augment.pad=0",
]
# Instead of weights to download: random ones of a small network.
WEIGHTS = "densenet121.ra_in1k"
SMALL_NETWORK = {"growth_rate": 4, "block_sizes": (1, 1, 1, 1), "stem_features": 8}
SMALL_RUN = [
    *(f"--config.model.{key}={value}" for key, value in SMALL_NETWORK.items()),
    "--config.data.image_size=32",
    "--config.total_steps=2",
    "--config.batch_size=8",
    "--config.mesh.data=1",
]
COMMANDS = (["densenet-jax"], ["python", "main.py"])


class Block(NamedTuple):
    where: str
    language: str
    code: str
    kind: str
    note: str


def blocks(page: pathlib.Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text[: match.start("code")].count("\n") + 1
        kind, _, note = (match["note"] or "").strip().partition(":")
        where = f"{page.relative_to(ROOT)}:{line}"
        found.append(Block(where, match["language"], match["code"], kind, note.strip()))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A folder with a small run in runs/digits."""
    folder = tmp_path_factory.mktemp("docs")
    words = ["--config=configs/digits.py", f"--workdir={folder}/runs/digits", *TINY]
    assert cli.main(["densenet-jax", *words]) == 0
    return folder


def small_weights() -> str:
    """Writes the random weights of a small network into the current folder; returns the file."""
    model = densenet_jax.create_model("densenet121", num_classes=5, **SMALL_NETWORK)
    variables = random_variables(model)
    state_dict = densenet_jax.weights.to_state_dict(model, variables)
    densenet_jax.weights.write_safetensors("densenet121-small.safetensors", state_dict)
    return "densenet121-small.safetensors"


def carry_out(line: str, where: str, parse_only: bool) -> None:
    """Runs a line of a shell block; commands of ours in this process, and small."""
    words = shlex.split(line, comments=True)
    for command in COMMANDS:
        if words[: len(command)] != command:
            continue
        argv = ["densenet-jax", *words[len(command) :]]
        if parse_only:
            cli.parse(argv)
            return
        small = TINY if "--config=configs/digits.py" in argv else []
        if f"--config=configs/finetune.py:{WEIGHTS},table" in argv:
            argv = [word.replace(WEIGHTS, small_weights()) for word in argv]
            small = SMALL_RUN
        assert cli.main([*argv, *small]) == 0, f"{where}: {line}"
        return
    assert not parse_only, f"{where}: {line} is no command that can be parsed"
    if words:
        subprocess.run(["bash", "-ec", line], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {"__name__": "__page__"}
    # One change of the images, and a small network where the weights are a formula.
    monkeypatch.setattr(robustness, "CHANGES", robustness.CHANGES[:1])
    make = functools.partial(densenet_jax.create_model, **SMALL_NETWORK)
    monkeypatch.setattr(verifying, "create_model", make)
    with mock.patch.dict(variants.VARIANTS):  # docs/extend.md adds one
        run_blocks(page, namespace)


def run_blocks(page: pathlib.Path, namespace: dict) -> None:
    for block in blocks(page):
        if block.kind == "not run" or block.language in ("", *OTHER_LANGUAGES):
            continue
        if block.kind == "before":
            exec(compile(block.note, block.where, "exec"), namespace)
        if block.language == "python":
            code = compile(block.code, block.where, "exec")
            if block.kind == "traced":
                jax.eval_shape(lambda code=code: exec(code, namespace))
            else:
                exec(code, namespace)
        else:
            for line in block.code.replace("\\\n", " ").splitlines():
                carry_out(line, block.where, parse_only=block.kind == "parsed")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_say_what_they_are(page):
    for block in blocks(page):
        assert block.language in ("python", "sh", "", *OTHER_LANGUAGES), block.where
        assert block.kind in ("", "not run", "parsed", "traced", "before"), (
            f"{block.where}: {block.kind}"
        )
        assert bool(block.kind) == bool(block.note), f"{block.where}: no reason"
        commands = re.search(r"^(\$ |python|pip|make|densenet-jax)", block.code, re.MULTILINE)
        assert block.language or not commands, f"{block.where}: say ```sh"
    rest = BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert not re.search(r"^    (python|densenet-jax) ", rest, re.MULTILINE), "say ```sh"


def test_every_page_is_on_the_site_and_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    variables = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    said = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "WARNING" not in said.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in tmp_path.glob("*.html")}
    for page in tmp_path.glob("*.html"):  # the site opens from a disk, without a network
        loaded = r'<(script|img|iframe)[^>]*src="?https?:|<link[^>]*stylesheet[^>]*https?:'
        text = page.read_text(encoding="utf-8")
        assert not re.search(loaded, text), page.name
        for block in re.findall(r"<pre>.*?</pre>", text, re.DOTALL):  # only in sentences
            assert 'class="whole"' not in block, page.name
    train = (tmp_path / "train.html").read_text(encoding="utf-8")
    assert '<code><span class="whole">--config.loggers=tensorboard,wandb</span></code>' in train
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    offered = {name for name in densenet_jax.__all__ if callable(getattr(densenet_jax, name))}
    for name in offered | {"train_and_evaluate", "write_report"}:
        assert re.search(rf'id="densenet_jax[\w.]*\.{name}"', api), name


SPANS = re.compile(r"`([^`]+)`")


def test_what_people_type_here_exists(run, monkeypatch):
    """The commands, keys and functions in the right column of the tables."""
    monkeypatch.chdir(run)
    page = ROOT / "docs" / "coming_from.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    count = 0
    for span in (span for row in rows for span in SPANS.findall(row.split(" | ")[-1])):
        words = shlex.split(re.sub(r"runs/(mine|densenet121)", "runs/digits", span))
        where = f"{page.name}: {span}"
        count += 1
        if span.startswith("densenet_jax."):
            name = span.removeprefix("densenet_jax.").partition("(")[0]
            assert operator.attrgetter(name)(densenet_jax), where
        elif words[:3] == ["python", "-m", "densenet_jax.data.prepare"]:
            prepare._parser().parse_args(words[3:])
        elif words[0] == "densenet-jax" and "..." not in words and "mine.py" not in span:
            cli.parse(words)
        elif words[0].startswith("--"):
            kept = [word for word in words if word.startswith("--")]
            cli.parse(["densenet-jax", "--config=configs/digits.py", *kept])
        else:
            count -= 1
    assert count > 60
