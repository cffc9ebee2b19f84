"""The wheel: built, installed into an empty environment, and used far from the checkout."""

import json
import os
import pathlib
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest

import densenet_jax
from densenet_jax import cli, export
from densenet_jax.cli import config_files
from densenet_jax.models.cpu import prebuilt
from release import wheels

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(p.name for p in (ROOT / "configs").glob("*.py"))
TINY = [
    "--config.total_steps=2",
    "--config.model.bottleneck=False",
    "--config.model.depth=7",
    "--config.model.growth_rate=4",
    "--config.data.image_size=8",
    "--config.mesh.data=1",
]
OWN = """\
from densenet_jax.configs import digits


def get_config():
    config = digits.get_config()
    config.seed = 77
    return config
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    return wheels.build(tmp_path_factory.mktemp("wheel"), "any")


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> pathlib.Path:
    """An environment with the wheel and, in place of downloads, the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    words = ["--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", *words, str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def run(environment, folder, *words: str) -> subprocess.CompletedProcess:
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(environment / "bin" / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def test_the_wheel_holds_configurations_class_names_and_pages_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"densenet_jax/configs/{name}" for name in CONFIGS} <= names
    assert "densenet_jax/data/sources/imagenet_classes.txt" in names
    assert "densenet_jax/weights/trained/densenet_cifar.cpu30_c10/model.safetensors" in names
    assert "densenet_jax/weights/trained/densenet_bc_100_12.cpu_c10/model.safetensors" in names
    pages = {f"densenet_jax/report/page/{p.name}" for p in ROOT.glob("densenet_jax/report/page/*")}
    assert pages <= names
    code = {str(p.relative_to(ROOT)) for p in ROOT.glob("densenet_jax/**/*.py")}
    assert code <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"densenet_jax"}


def test_a_wheel_for_a_platform_has_its_libraries(tmp_path, monkeypatch):
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nfor name; do :; done\necho made > "$name"\n')
    compiler.chmod(0o755)
    monkeypatch.setitem(wheels.PLATFORMS, "manylinux_2_34_x86_64", ("x86_64", [str(compiler)]))
    path = wheels.build(tmp_path, "manylinux_2_34_x86_64")
    assert path.name.endswith("-py3-none-manylinux_2_34_x86_64.whl")
    names = set(zipfile.ZipFile(path).namelist())
    built = {name.rpartition("/")[2] for name in names if "/built/" in name}
    levels = "sapphirerapids", "cooperlake", "x86-64-v4", "x86-64-v3"
    assert built == {prebuilt.name(level) for level in levels}


def test_the_source_archive_is_the_checkout(tmp_path):
    """Whoever unpacks it can run the tests, the benchmarks and the documentation's commands."""
    others = ("__pycache__", "*.egg-info", ".git", ".venv", "build", "dist", "runs", ".*_cache")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(*others))
    shutil.rmtree(source / "weights", ignore_errors=True)  # a link to files of the package
    wanted = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert "densenet_jax/weights/trained/densenet_cifar.cpu30_c10/README.md" in wanted
    script = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"tests/conftest.py", "docs/index.md", "configs/digits.py", "launch/slurm.sh"} <= names
    assert {
        name for name in wanted - names if name.endswith((".py", ".md", ".sh", ".txt"))
    } == set()


def test_the_command_works_in_any_directory(environment, tmp_path):
    said = run(environment, tmp_path, "densenet-jax", "--help")
    assert (said.returncode, said.stderr) == (0, "")
    assert "densenet-jax predict" in said.stdout
    assert "main.py" not in said.stdout
    assert f"{environment}/" in said.stdout  # the file that has every key
    said = run(environment, tmp_path, "densenet-jax", "--config=configs/digits.py", *TINY)
    assert said.returncode == 0, said.stderr
    assert "densenet-jax evaluate --workdir=runs/digits" in said.stdout
    assert json.loads((tmp_path / "runs/digits/config.json").read_text())["total_steps"] == 2
    assert "Configuration" in (tmp_path / "runs/digits/report.html").read_text()
    said = run(environment, tmp_path, "python", "-c", "import densenet_jax; print(densenet_jax)")
    assert str(environment) in said.stdout  # not the checkout's


def test_every_configuration_stands_alone_in_the_wheel(environment, tmp_path):
    script = "\n".join(
        f"import densenet_jax.configs.{name} as c; c.get_config()" for name in config_files.names()
    )
    said = run(environment, tmp_path, "python", "-c", script)
    assert said.returncode == 0, said.stderr


def test_a_missing_package_is_named(environment, tmp_path):
    script = (
        "import sys; sys.modules['ml_collections'] = None; "
        "from densenet_jax.__main__ import main; sys.exit(main())"
    )
    said = run(environment, tmp_path, "python", "-c", script)
    assert said.returncode == 2
    assert said.stderr.startswith("error: the Python package ml_collections is not installed")
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("flag", [["--config=configs/digits.py"], ["--config", "digits"]])
def test_a_packaged_configuration_is_found_by_name(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, config, options = cli.parse(["densenet-jax", *flag, "--config.seed=3"])
    assert (command, config.data.name, config.seed) == ("train", "digits", 3)
    assert (options["workdir"], options["name"]) == (None, "digits")
    _, config, _ = cli.parse(["densenet-jax", "--config=configs/cifar10.py:densenet_40_12"])
    assert config.model.depth == 40


def test_a_file_of_the_users_goes_before_a_packaged_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/digits.py").write_text(OWN)
    assert cli.parse(["densenet-jax", "--config=configs/digits.py"])[1].seed == 77
    assert config_files.locate("configs/mine.py") == "configs/mine.py"


def test_extras_are_the_lines_of_the_requirement_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for extra in ("test",):
        lines = (ROOT / f"requirements-{extra}.txt").read_text().splitlines()
        wanted = [line.partition("#")[0].strip() for line in lines]
        assert extras[extra] == [line for line in wanted if line]


def test_what_exports_need_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines += project["optional-dependencies"]["onnx"]
    asked = {re.match(r"[\w.-]*", line)[0] for line in lines}
    assert {package for row in export.FORMATS.values() for package in row.packages} <= asked


def test_version():
    assert densenet_jax.__version__.count(".") == 2
