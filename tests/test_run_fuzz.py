"""Any content of a run's files ends in a page or in a clear message, never in a traceback."""

import contextlib
import json
import pathlib
import shutil
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_jax.cli import commands
from densenet_jax.report import write_report
from densenet_jax.training.rundir import run_classes, run_outputs, saved_config
from tests.fuzzing import fuzz
from tests.report.conftest import tiny, workdir  # noqa: F401 - fixtures

FILES = ("config.json", "metrics.jsonl", "environment.json", "insight.json", "predictions.npz")
RECORDS = ("classes.json", "calibration.json", "evaluation.json")
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -1, 2**63, 1e308]))
ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def dumps(value: object) -> str:
    return json.dumps(value).replace("\\ud800", "?")


@st.composite
def damages(draw):
    """A function from a file's content to other content."""
    kind = draw(st.sampled_from(["bytes", "cut", "json", "node", "other"]))
    if kind == "bytes":
        places = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5))

        def flip(content: bytes) -> bytes:
            changed = bytearray(content)
            for place, value in places:
                changed[int(place * (len(changed) - 1))] = value
            return bytes(changed)

        return flip
    if kind == "cut":
        share = draw(st.floats(0, 1))
        return lambda content: content[: int(share * len(content))]
    if kind == "other":
        other = draw(st.one_of(st.binary(max_size=50), st.just(b"[" * 10_000)))
        return lambda content: other
    odd, path = draw(ODD), draw(st.lists(st.integers(0, 9), max_size=0 if kind == "json" else 4))

    def replace(content: bytes) -> bytes:
        lines = content.splitlines() or [b""]
        try:
            values = [json.loads(content)]
        except ValueError:
            try:
                values = [json.loads(line) for line in lines]
            except ValueError:  # not JSON
                return dumps(odd).encode()
        return "\n".join(dumps(_with(value, path, odd)) for value in values).encode() + b"\n"

    return replace


def _with(tree: object, path: list[int], odd: object) -> object:
    """Returns a tree in which the node at the end of a path is another value."""
    if not path or not isinstance(tree, dict | list) or not tree:
        return odd
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = keys[path[0] % len(keys)]
    changed = dict(tree) if isinstance(tree, dict) else list(tree)
    changed[key] = _with(changed[key], path[1:], odd)
    return changed


@pytest.mark.filterwarnings("ignore")
@given(st.dictionaries(st.sampled_from(FILES), damages(), min_size=1, max_size=2))
@fuzz(40)
def test_any_run(workdir, changes):  # noqa: F811 - the fixture
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(shutil.copytree(workdir, pathlib.Path(folder) / "run"))
        for name, change in changes.items():
            (run / name).write_bytes(change((run / name).read_bytes()))
        try:
            text = write_report(run).read_text(encoding="utf-8")
        except commands.USER_ERRORS:
            return
        assert "</html>" in text


@given(st.sampled_from(RECORDS), damages())
@fuzz(100)
def test_any_record(name, change):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        for file in RECORDS:
            (path / file).write_text('{"labels": ["a"], "step": 1, "scale": [1.0]}')
        (path / "classes.json").write_text('["a"]')
        (path / name).write_bytes(change((path / name).read_bytes()))
        (path / "config.json").write_bytes(change(b'{"seed": 1, "data": {"mean": [0.5]}}'))
        for read in (
            lambda: run_classes.class_names(path),
            lambda: run_outputs.read(folder, saved_config.load(path / "config.json"), 1),
        ):
            with contextlib.suppress(commands.USER_ERRORS):
                read()
