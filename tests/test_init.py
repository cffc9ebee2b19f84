"""`init` writes a configuration that runs, whatever the names in the data are."""

import csv
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from densenet_jax import cli
from densenet_jax.cli import completion
from densenet_jax.training import checks, settings


def pictures(folder, names, dtype=np.uint8, highest=255):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in names:
        pixels = rng.integers(0, highest, (20, 30), dtype, endpoint=True)
        cv2.imwrite(str(folder / name), pixels)


def table(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def init(data, output, *more):
    """Runs `init`; returns its configuration as a run reads it, after the run's own checks."""
    code = cli.main(["main.py", "init", str(data), f"--output={output}", *more])
    assert code == 0
    _, config, _ = cli.parse(["main.py", f"--config={output}"])
    checks.check(config)
    return config


def test_a_folder_with_names_that_are_code(tmp_path, capsys):
    hostile = "a'''\nimport os; os.abort() #\"\\"
    pictures(tmp_path / "data" / hostile, [f"{i}.png" for i in range(40)], np.uint16, 4000)
    pictures(tmp_path / "data" / "rare", ["1.png", "2.png", "3.png"], np.uint16, 4000)
    config = init(tmp_path / "data", tmp_path / "x.py", "--weights=file'.safetensors")
    assert config.init_from == "file'.safetensors"
    assert (config.data.dtype, config.data.value_range) == ("uint16", (0, 4095))
    assert config.class_weights == "auto"
    assert config.best_metric == "balanced_accuracy"
    assert config.data.fit == "pad"
    assert len(settings.train_source(config)) > 30
    assert hostile not in capsys.readouterr().out


def test_a_table_of_several_labels_with_patients(tmp_path):
    pictures(tmp_path / "img", [f"{i}.png" for i in range(60)])
    rows = [[f"img/{i}.png", f"p{i // 3}", i % 2, 1 if i % 4 else "", 40 + i] for i in range(60)]
    path = table(tmp_path / "t.csv", ["File", "PatientID", "mass", "nodule", "age"], *rows)
    config = init(path, tmp_path / "x.py")
    assert config.task == "multilabel"
    assert config.data.path_column == "File"
    assert config.data.label_columns == ("mass", "nodule")
    assert config.data.group_column == "PatientID"
    groups = [set(make(config).groups) for make in (settings.train_source, settings.eval_source)]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize(
    ("header", "label", "task"),
    [
        (["id", "age"], lambda i: i + 0.5, "regression"),
        (["id", "dx"], lambda i: "ab"[i % 2], "classification"),
        (["id", "Finding Labels"], lambda i: ["No Finding", "x|y"][i % 2], "multilabel"),
    ],
)
def test_the_task_is_seen_from_the_cells(tmp_path, header, label, task):
    pictures(tmp_path / "img", [f"{i}.png" for i in range(60)])
    rows = [[f"{i}.png", label(i)] for i in range(60)]
    assert init(table(tmp_path / "t.csv", header, *rows), tmp_path / "x.py").task == task


def test_many_small_images_train_a_network_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("densenet_jax.cli.new_config.ENOUGH", 30)
    pictures(tmp_path / "data" / "a", [f"{i}.png" for i in range(20)])
    pictures(tmp_path / "data" / "b", [f"{i}.png" for i in range(20)])
    config = init(tmp_path / "data", tmp_path / "x.py")
    assert (config.init_from, config.data.image_size) == ("", 32)
    np.testing.assert_allclose(config.data.mean, [0.5] * 3, atol=0.01)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a", "b", "c"], ["1.png", "x", "y"]], "which column has the labels is not clear"),
        ([["a", "b"], ["x", "y"], ["x", "z"]], "which column has the paths of images"),
    ],
)
def test_columns_that_could_be_anything(tmp_path, capsys, rows, message):
    pictures(tmp_path / "img", ["1.png"])
    path = table(tmp_path / "t.csv", *rows)
    assert cli.main(["main.py", "init", str(path), f"--output={tmp_path}/x.py"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.py").exists()


def test_a_file_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "x.py").write_text("mine")
    assert cli.main(["main.py", "init", str(tmp_path), f"--output={tmp_path}/x.py"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "x.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["pred"], ["predict"]),
        (["--config", "=", "configs/dig"], ["configs/digits.py"]),
        (["export", "--format", "=", "on"], ["onnx"]),
        (["--config.data.group_c"], ["--config.data.group_column="]),
    ],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes(tmp_path, words, wanted):
    quoted = " ".join(f"'{word}'" for word in ["densenet-jax", *words])
    script = f"""{completion.script("bash")}
    compopt() {{ :; }}
    COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _densenet_jax; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout.split(), done.stderr) == (wanted, "")
