"""The command `weights`, and --model beside --weights."""

import numpy as np
import pytest

from densenet_jax import cli, weights
from densenet_jax.models.variants import create_model
from tests.random_variables import random_variables

SMALL = {"block_sizes": (1, 1), "growth_rate": 4, "stem_features": 8, "num_classes": 3}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a.safetensors, the same as b.npz with Keras's names, and c, which differs."""
    folder = tmp_path_factory.mktemp("files")
    model = create_model("densenet121", **SMALL)
    variables = random_variables(model)
    torch = weights.to_state_dict(model, variables)
    theirs = {f"model.{name}": tensor for name, tensor in torch.items()}
    weights.write_safetensors(folder / "a.safetensors", theirs | {"loss.weight": np.ones(3)})
    np.savez(folder / "b.npz", **weights.to_state_dict(model, variables, "keras"))
    torch["classifier.bias"] = torch["classifier.bias"] + np.float32(0.5)
    weights.write_safetensors(folder / "c.safetensors", torch)
    weights.write_safetensors(folder / "other.safetensors", {"x": np.ones(3)})
    return folder


def run(capsys, *words):
    code = cli.main(["main.py", "weights", *map(str, words)])
    out, err = capsys.readouterr()
    return code, " ".join((out + err).split())


def test_a_file_is_described(capsys, files):
    code, text = run(capsys, files / "a.safetensors")
    assert code == 0
    for words in (
        *("format safetensors", "names PyTorch", "module model", "channels 3"),
        *(
            "classifier model.classifier, 3 classes",
            "'block_sizes': (1, 1)",
            "(assumed: ImageNet's)",
        ),
        "note: Tensors that belong to no layer are not used: loss.weight.",
    ):
        assert words in text
    code, text = run(capsys, files / "other.safetensors")
    assert code == 0
    assert "first names x" in text
    assert "do not say which network" in text


def test_a_file_is_converted(capsys, files, tmp_path):
    code, text = run(capsys, files / "b.npz", f"--output={tmp_path / 'x.safetensors'}")
    assert code == 0
    assert "note: the file cannot say norm_epsilon=1.001e-05" in text
    written, original = (
        weights.read(p) for p in (tmp_path / "x.safetensors", files / "a.safetensors")
    )
    assert all(np.array_equal(x, original[f"model.{name}"]) for name, x in written.items())
    for output in ("x.pth", "no/folder/x.safetensors"):
        assert run(capsys, files / "b.npz", f"--output={output}")[0] == 2


def test_two_files_are_compared_by_their_variables(capsys, files):
    code, text = run(capsys, files / "a.safetensors", files / "b.npz")
    assert (code, "are equal" in text) == (0, True)
    code, text = run(capsys, files / "a.safetensors", files / "c.safetensors")
    assert code == 1
    assert "differ, by up to 0.5: params/classifier/bias" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights"], "takes one file to describe"),
        (["weights", "a", "b", "c"], "takes one file to describe"),
        (["weights", "missing.pth"], "no such file"),
        (["weights", "x.pth", "--model=densenet12"], "Did you mean densenet121"),
        (["predict", "--weights=x.pth", "--model=resnet", "x.png"], "There is no model 'resnet'"),
        (["predict", "--workdir=DIR", "--model=densenet121", "x.png"], "--weights=FILE"),
        (["export", "--workdir=DIR", "--model=densenet121", "--output=x"], "--weights=FILE"),
    ],
)
def test_wrong_words(capsys, tmp_path, words, message):
    (tmp_path / "run").mkdir()
    config = "--config=configs/digits.py"
    words = [w.replace("DIR", str(tmp_path / "run")) for w in words]
    more = [config] if any("workdir" in w for w in words) else []
    assert cli.main(["main.py", *words, *more]) == 2
    assert message in capsys.readouterr().err


def test_the_model_of_a_file(capsys, tmp_path):
    weights.write_safetensors(tmp_path / "x.safetensors", {"x": np.ones(3)})
    source = f"--weights={tmp_path / 'x.safetensors'}"
    assert cli.main(["main.py", "predict", source, "x.png"]) == 2
    assert "--model=NAME" in capsys.readouterr().err
    assert cli.main(["main.py", "predict", source, "--model=densenet121", "x.png"]) == 2
    assert "None of the names (x)" in capsys.readouterr().err


def test_one_of_two_networks_is_chosen_by_a_flag(capsys, files, tmp_path):
    first = weights.read(files / "a.safetensors")
    both = {
        f"{which}.{name.removeprefix('model.')}": tensor + (which == "teacher")
        for which in ("student", "teacher")
        for name, tensor in first.items()
        if name.startswith("model.")
    }
    weights.write_safetensors(tmp_path / "two.safetensors", both)
    code, text = run(capsys, tmp_path / "two.safetensors", f"--output={tmp_path / 'x.safetensors'}")
    assert code == 2
    assert "(--prefix=NAME) chooses one" in text
    code, _ = run(
        *(capsys, tmp_path / "two.safetensors", "--prefix=student"),
        f"--output={tmp_path / 'x.safetensors'}",
    )
    assert code == 0
    assert run(capsys, tmp_path / "x.safetensors", files / "a.safetensors")[0] == 0
