"""predict: every image of the given paths gets an answer or an error."""

import csv
import io
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from densenet_jax import create_model
from densenet_jax.data.sources import imagenet_classes
from densenet_jax.prediction import output
from densenet_jax.prediction.output import show
from densenet_jax.prediction.predict import Answer, PredictError, find, predict
from densenet_jax.tasks.outputs import Outputs
from densenet_jax.terminal import Console
from densenet_jax.weights.published import Preprocessing

PREPROCESSING = Preprocessing(16, 1.0, "bilinear", (0.5,), (0.25,))
NAMES = ("cat", "dog", "[red]bird")


@pytest.fixture(scope="module")
def tiny():
    fields = {"block_sizes": (1, 1), "growth_rate": 4, "num_classes": 3, "in_channels": 1}
    model = create_model("densenet_cifar", **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda s: rng.uniform(0.1, 0.3, s.shape).astype("f4"), shapes)


@pytest.fixture
def folder(tmp_path):
    """A folder with an image, an image in a subfolder, and two files that are not images."""
    rng = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for name in ("a.png", "more/b c.jpg"):
        Image.fromarray(rng.integers(0, 256, (20, 24), np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n nonsense")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def ask(tiny, *paths, **options) -> list[Answer]:
    return list(predict(*tiny, PREPROCESSING, NAMES, [str(p) for p in paths], **options))


def test_a_folder(tiny, folder):
    one, broken, two = ask(tiny, folder)
    assert [one.path, two.path] == [f"{folder}/a.png", f"{folder}/more/b c.jpg"]
    assert broken.error.startswith("not a readable image")
    assert broken.classes == ()
    assert one.image.shape == (16, 16, 1)
    logits = np.asarray(jax.jit(tiny[0].apply)(tiny[1], (one.image[None] / 255 - 0.5) / 0.25))[0]
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert one.classes == tuple(np.argsort(-chances).tolist())
    np.testing.assert_allclose(one.probabilities, np.sort(chances)[::-1], rtol=1e-3)
    assert one.labels == tuple(NAMES[i] for i in one.classes)


def test_answers_do_not_depend_on_the_batch(tiny, folder):
    paths = [folder / "a.png", folder / "broken.png", folder / "more/b c.jpg"] * 2
    together, apart = ask(tiny, *paths), ask(tiny, *paths, batch_size=4, top=2)
    assert [a.path for a in together] == [a.path for a in apart] == [str(p) for p in paths]
    for a, b in zip(together, apart, strict=True):
        assert a.classes[:2] == b.classes
        np.testing.assert_allclose(a.probabilities[:2], b.probabilities, rtol=1e-4)


def test_paths_patterns_and_urls_are_resolved(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert list(find(["*.png"])) == [("a.png", None), ("broken.png", None)]
    assert list(find(["**/*.jpg"])) == [("more/b c.jpg", None)]
    assert list(find([f"file://{folder}/more/b%20c.jpg"])) == [(f"{folder}/more/b c.jpg", None)]
    assert list(find(["~/a.png", "-"])) == [(f"{folder}/a.png", None), ("-", None)]
    assert list(find(["*.gif", "gone.png"])) == [
        ("*.gif", "no file matches"),
        ("gone.png", "there is no such file"),
    ]
    ((path, error),) = find(["https://example.org/a.png"])
    assert "download the file first" in error
    (folder / "[1].png").touch()  # a file whose name is also a glob pattern
    assert list(find(["[1].png"])) == [("[1].png", None)]
    (folder / "empty").mkdir()
    ((path, error),) = find(["empty"])
    assert (path, error[:25]) == ("empty", "the folder has no images ")


def test_standard_input(tiny, folder, monkeypatch):
    class Stdin:
        buffer = io.BytesIO((folder / "a.png").read_bytes())

    monkeypatch.setattr("sys.stdin", Stdin)
    (piped,), (read, *_) = ask(tiny, "-"), ask(tiny, folder / "a.png")
    assert piped.path == "-"
    assert piped.probabilities == read.probabilities


@pytest.mark.parametrize("block", ["final", "block2"])
def test_overlays(tiny, folder, block):
    out = folder / "maps" / "here"
    one, two, three = ask(
        tiny, folder / "a.png", folder / "a.png", folder / "broken.png", cam=out, block=block
    )
    assert [one.overlay, two.overlay, three.overlay] == [f"{out}/a.png", f"{out}/a-2.png", None]
    with Image.open(one.overlay) as picture:
        assert (picture.mode, picture.size) == ("RGB", (224, 224))


def test_pipes_and_huge_files_are_refused_with_a_reason(tiny, folder, monkeypatch):
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to("nowhere")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(2**42)
    monkeypatch.setattr("densenet_jax.data.reading.files.MAX_FILE_BYTES", 10_000)
    said = {pathlib.Path(a.path).name: a.error for a in ask(tiny, folder)}
    assert said["pipe.png"] == "it is not a regular file"
    assert said["gone.png"] == "No such file or directory"
    assert said["huge.png"] == "the file has more than 10,000 bytes, too many for an image"
    assert said["a.png"] is None


def test_errors(tiny, folder):
    with pytest.raises(PredictError, match="predict needs images"):
        ask(tiny)
    with pytest.raises(PredictError, match="3 classes, but there are 2 names"):
        predict(*tiny, PREPROCESSING, ["cat", "dog"], ["x"])
    with pytest.raises(PredictError, match="no classifier"):
        predict(create_model("densenet121", num_classes=0), {}, PREPROCESSING, None, ["x"])
    with pytest.raises(PredictError, match=r"a\.png/maps cannot be created"):
        ask(tiny, folder / "a.png", cam=folder / "a.png" / "maps")
    with pytest.raises(PredictError, match="no block 'block7'; the blocks are block1"):
        ask(tiny, folder / "a.png", cam=folder / "maps", block="block7")


def test_names_of_classes(tiny, folder):
    (answer,) = predict(*tiny, PREPROCESSING, None, [str(folder / "a.png")])
    assert answer.labels[0] == f"class {answer.classes[0]}"
    wnids = ("n01440764", "n01443537", "mine")
    (answer,) = predict(*tiny, PREPROCESSING, wnids, [str(folder / "a.png")])
    assert set(answer.labels) == {"tench", "goldfish", "mine"}
    assert len(set(imagenet_classes.names())) == 1000


SOME = [
    Answer("a.png", (1, 2), ("dog", "[red]bird"), (0.75, 0.25), np.zeros((4, 4, 3), np.uint8)),
    Answer("\x1b[31m\udcff.png", error="there is no such file"),
]


def written(form: str, some=SOME) -> tuple[int, str]:
    file = io.StringIO()
    return show(some, form, file), file.getvalue()


def test_json_lines():
    code, text = written("json")
    first, second = map(json.loads, text.splitlines())
    assert code == 2
    assert first["predictions"][1] == {"class": 2, "label": "[red]bird", "probability": 0.25}
    assert second["error"] == "there is no such file"
    assert written("json", SOME[:1])[0] == 0


def test_csv():
    rows = list(csv.DictReader(io.StringIO(written("csv")[1])))
    assert [(r["path"], r["rank"], r["label"]) for r in rows[:2]] == [
        ("a.png", "1", "dog"),
        ("a.png", "2", "[red]bird"),
    ]
    assert rows[2]["error"] == "there is no such file"
    formula = [Answer("-1.png", (1,), ("=1+1",), (1.0,))]
    (row,) = csv.DictReader(io.StringIO(written("csv", formula)[1]))
    assert (row["path"], row["label"]) == ("'-1.png", "'=1+1")


def test_lines_in_a_pipe():
    _, text = written("table")
    assert text.splitlines() == [
        "a.png: dog 75.00%, [red]bird 25.00%",
        "\\x1b[31m\\udcff.png: error: there is no such file",
    ]
    text.encode()


def test_a_table_on_a_terminal(monkeypatch):
    options = {"force_terminal": True, "color_system": "truecolor", "width": 60}
    monkeypatch.setattr(output, "Console", lambda file: Console(file, **options))
    _, text = written("table")
    assert text.count("▀") == 12 * 6  # 4 pixels, enlarged to 12; a character shows two
    assert "75.00%" in text
    assert "[red]bird" in text
    assert "\x1b[31m\udcff" not in text


def values_of(tiny, path):
    """Returns the logits of an image, computed beside `predict`."""
    (answer,) = ask(tiny, path)
    image = (answer.image[None] / 255 - 0.5) / 0.25
    return np.asarray(jax.jit(tiny[0].apply)(tiny[1], image))[0]


def test_labels_are_answered_from_their_thresholds_on(tiny, folder, capsys):
    path = folder / "a.png"
    chances = 1 / (1 + np.exp(-values_of(tiny, path)))
    order = np.argsort(-chances)
    between = float(np.sort(chances)[1:].mean())  # below the greatest of three, above the others
    labels = Outputs("multilabel", "sigmoid", thresholds=(between,))
    (answer,) = ask(tiny, path, outputs=labels)
    assert answer.classes == (order[0],)
    (every,) = ask(tiny, path, outputs=labels, top=3)
    assert every.classes == tuple(order)
    assert every.present == (True, False, False)
    np.testing.assert_allclose(every.probabilities, chances[order], rtol=1e-4)
    (nothing,) = ask(tiny, path, outputs=Outputs("multilabel", "sigmoid", thresholds=(1.0,) * 3))
    assert nothing.classes == ()
    assert show([nothing]) == 0
    assert "no label from its threshold on" in capsys.readouterr().out
    show([every, nothing], "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["present"] for row in rows] == ["1", "0", "0", ""]
    show([every], "json")
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["present"] for row in found] == [True, False, False]


def test_numbers_are_answered_in_their_units(tiny, folder, capsys):
    path = folder / "a.png"
    units = Outputs("regression", "identity", scale=(10.0, 1.0, 1.0), shift=(50.0, 0.0, 0.0))
    (answer,) = ask(tiny, path, outputs=units)
    assert answer.classes == (0, 1, 2)
    wanted = values_of(tiny, path) * [10, 1, 1] + [50, 0, 0]
    np.testing.assert_allclose(answer.values, wanted, rtol=1e-4)
    show([answer], "csv")
    assert "value" in next(csv.reader(io.StringIO(capsys.readouterr().out)))


def test_a_network_whose_outputs_are_not_finite_answers_nothing(tiny, folder):
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), tiny[1])
    (answer,) = ask((tiny[0], broken), folder / "a.png")
    assert answer.error == "the network's outputs are not finite"
    assert answer.classes == ()
