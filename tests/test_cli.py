"""The command line: bad input ends in one clear sentence and exit code 2."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import densenet_jax
from densenet_jax import cli
from densenet_jax.cli import commands, suggestions
from densenet_jax.cli.table import FLAGS
from densenet_jax.configs import default

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = f"--config={ROOT}/configs/digits.py"


@pytest.fixture(autouse=True)
def _in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["main.py", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config is missing"),
        (["fly", DIGITS], "no command 'fly'. There are train, evaluate"),
        (["train", "now", DIGITS], "does not take 'now'"),
        (
            [DIGITS, "--config.modle.name=x"],
            "no key 'modle.name'; did you mean --config.model.name=VALUE?",
        ),
        ([DIGITS, "--epochs=3"], "no flag --epochs; here it is --config.total_epochs=N"),
        ([DIGITS, "--lr", "0.1"], "no flag --lr; here it is --config.optimizer.learning_rate=X"),
        ([DIGITS, "--batch-size=8"], "here it is --config.batch_size=VALUE"),
        ([DIGITS, "--chekpoint=3"], "did you mean --checkpoint?"),
        ([DIGITS, "predit"], "did you mean predict?"),
        (["--config=configs/digit.py"], "did you mean configs/digits.py?"),
        ([DIGITS, "--config.batch_size=abc"], "invalid literal for int() with base 10: 'abc' ("),
        (["predict", "--weights=a", "--workdir=b", "x.png"], "or --weights=a, not both"),
        (["predict", "--weights=a", "--checkpoint=best", "x.png"], "--weights has none"),
        (["predict", "--workdir=a", "--workdir=b", "x.png"], "predict takes one --workdir"),
        (
            ["evaluate", DIGITS, "--workdir=a", "--workdir=b", "--coverage=0.9"],
            "--outside and --coverage are for a single run",
        ),
        ([DIGITS, "--config.data.dir=x"], "did you mean --config.data.data_dir=VALUE?"),
        ([DIGITS, "--config.lr=1"], "here it is --config.optimizer.learning_rate=X."),
        (
            [DIGITS, "--config.data.name.x=1"],
            "no key 'data.name.x'; did you mean --config.data.name",
        ),
        ([DIGITS, "--config.seeed=1"], "no key 'seeed'; did you mean --config.seed=VALUE?"),
        ([DIGITS, "--config.batch_size=many"], "config.batch_size=many"),
        ([DIGITS, "--wrkdir=x"], "no flag --wrkdir; did you mean --workdir?"),
        (["benchmark", DIGITS, "--output=/nowhere/x.json"], "--output=/nowhere/x.json cannot be"),
        (["logits", DIGITS, "--weights=x", "--output=/nowhere/x"], "--output=/nowhere/x cannot be"),
        ([DIGITS, "--cam=x"], "train does not take --cam; predict can"),
        (["predict", "x.png", "--workdir=/nowhere"], "/nowhere is not the directory of a run"),
        (["report", "/nowhere"], "is not the directory of a run"),
        (["dossier", "--workdir=/nowhere"], "/nowhere is not the directory of a run"),
        (["dossier", DIGITS, "--workdir=/nowhere", "--images=0"], "/nowhere/config.json"),
        (["--config=configs/cifar10.py:resnet50"], "takes densenet_bc_DEPTH_GROWTH"),
        ([DIGITS, "--config.model.name=densnet121"], "Did you mean densenet121"),
        ([DIGITS, "--config.model.depth=23"], "depth is 23"),
        ([DIGITS, "--config.model.num_classes=7"], "digits has 10 classes"),
        ([DIGITS, "--config.batch_size=12"], "multiple of 8, the number of devices: 8 or 16"),
        ([DIGITS, "--config.mesh.data=9"], "there are 8 devices"),
        ([DIGITS, "--config.data.name=cifra10"], "did you mean cifar10"),
        ([DIGITS, "--config.data.eval_split=dev"], "no split 'dev'"),
        ([DIGITS, "--config.optimizer.learning_rate=nan"], "learning_rate is nan"),
        ([DIGITS, "--config.model.dtype=float8"], "'float8'; it must be one of"),
        (["evaluate", "--workdir=/nowhere"], "/nowhere is not the directory of a run"),
        (["export", "--workdir=/nowhere", "--output=x"], "/nowhere is not the directory of a run"),
        (["export", "--weights=x.pth"], "export needs --output=PATH"),
        (["export", "--weights=x.pth", "--output=x", "--int8"], "--calibration=DIR"),
        (["export", "--weights=x.pth", "--format=json"], "export takes onnx, stablehlo"),
        (["export", "--weights=x.pth", "--csv"], "--format=csv: export takes onnx, stablehlo"),
        (["predict", "--weights=x.pth", "--format=onnx"], "predict takes table, json or csv"),
        (["predict", "--weights=x.pth", "--int8"], "predict does not take --int8; export can"),
    ],
)
def test_bad_input(capsys, tmp_path, words, message):
    if not any(word.startswith(("--workdir", "--weights")) for word in words):
        words = [*words, f"--workdir={tmp_path / 'run'}"]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()  # nothing is left behind


def test_missing_imagenet_says_how_to_get_it(capsys, tmp_path):
    code, _, err = run(
        capsys, "--config=configs/densenet121.py", f"--config.data.data_dir={tmp_path}"
    )
    assert code == 2
    assert f"imagenet2012 is not in {tmp_path}" in err
    assert "densenet_jax.data.prepare" in err
    assert "--config.data.data_dir=DIR" in err
    assert "make demo" in err
    assert len(err.splitlines()) < 12


def test_copies_of_a_command_for_one_process_are_refused_once(capsys, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert cli.main(["main.py", "models"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: models is for one process, but mpirun has started 2; start it without mpirun.\n"
    )
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert cli.main(["main.py", "models"]) == 0
    assert capsys.readouterr() == ("", "")


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in cli.COMMANDS:
        assert f"\n  {command} " in out


@pytest.mark.parametrize(
    ("argv0", "called"),
    [
        ("main.py", "python main.py"),
        ("/there/densenet_jax/__main__.py", "python -m densenet_jax"),
        ("/no/path/densenet-jax", "/no/path/densenet-jax"),
        (shutil.which("env"), "env"),  # an installed command is called by its name
    ],
)
def test_what_is_advised_is_called_as_this_process_was(capsys, argv0, called):
    assert cli.main([argv0, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: {called} [COMMAND]" in out
    assert out.count("main.py") == (out.count(called) if "main.py" in called else 0)
    assert cli.main([argv0]) == 2
    assert f"for example: {called} --config=configs/digits.py" in capsys.readouterr().err


def test_short_forms_of_the_format():
    for form in ("json", "csv"):
        words = ["predict", "x.png", "--weights=x.pth", f"--{form}"]
        assert cli.parse(["main.py", *words])[2]["format"] == form


@pytest.mark.parametrize("text", ["{", '{"nonsense": 1}', "[1]"])
def test_a_broken_stored_configuration_is_named(capsys, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    code, _, err = run(capsys, "evaluate", f"--workdir={tmp_path}")
    assert code == 2
    assert f"{tmp_path}/config.json is not the configuration of a run" in err


def test_a_run_of_another_seed_is_refused(capsys, tmp_path):
    _, config, _ = cli.parse(["main.py", DIGITS])
    stored = json.loads(config.to_json()) | {"seed": 5}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    code, _, err = run(capsys, DIGITS, f"--workdir={tmp_path}")
    assert code == 2
    assert "holds a run with config.seed=5, not 0" in err


def test_a_stored_configuration_keeps_types_and_takes_overrides(tmp_path):
    _, config, _ = cli.parse(["main.py", DIGITS])
    (tmp_path / "config.json").write_text(config.to_json())
    words = [f"--workdir={tmp_path}", "--config.total_steps=3", "--config.data.crop_scale=(0.5,1)"]
    command, again, options = cli.parse(["main.py", *words])
    assert command == "train"
    assert options["workdir"] == str(tmp_path)
    assert again.total_steps == 3
    assert again.data.crop_scale == (0.5, 1)
    assert again.model.to_dict() == config.model.to_dict()


def test_simulated_devices_leave_threads_to_compute(monkeypatch):
    monkeypatch.setattr(
        cli.os, "environ", {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    )
    monkeypatch.setattr(cli.os, "cpu_count", lambda: 2)
    cli.set_up_process()
    assert cli.os.environ["NPROC"] == "6"
    monkeypatch.setattr(cli.os, "environ", {"XLA_FLAGS": ""})
    cli.set_up_process()
    assert "NPROC" not in cli.os.environ  # one device: as many as there are cores


def test_a_full_disk_is_no_traceback(capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/config.json.tmp")

    monkeypatch.setattr(commands, "models", full)
    code, _, said = run(capsys, "models")
    assert code == 2
    assert "runs/x/config.json.tmp cannot be written or read: No space left on device" in said


def test_compiled_programs_are_kept_for_the_next_start(tmp_path):
    code = (
        "from densenet_jax import cli; cli.parse(['main.py', '--config=configs/digits.py']); "
        "cli.set_up_process(); import jax; print(jax.config.jax_compilation_cache_dir)"
    )
    environ = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"{tmp_path}/.cache/densenet_jax/compiled\n"


def test_version_and_the_help_of_one_command(capsys):
    assert cli.main(["main.py", "--version"]) == 0
    assert capsys.readouterr().out.startswith(f"densenet_jax {densenet_jax.__version__} (jax ")
    assert cli.main(["main.py", "predict", "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: python main.py predict" in text
    assert "--coverage=SHARE" in text
    assert "--sweep" not in text


def test_every_familiar_flag_stands_for_something_that_exists():
    keys = {f"--config.{option.key}" for option in default.OPTIONS}
    for name, ours in suggestions.FAMILIAR.items():
        assert name not in FLAGS
        word = ours.partition("=")[0].partition(" ")[0]
        known = word in keys or word.removeprefix("--") in {"workdir", *FLAGS}
        assert known or word in ("python", "the"), name
