"""A run's directory belongs to one set of classes, and to one process at a time."""

import json
import subprocess
import sys

import pytest

from densenet_jax.training.errors import ConfigError
from densenet_jax.training.rundir import run_classes, workdir


def test_the_classes_of_a_run_do_not_change(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(["cat", "dog"]))
    run_classes.check(("cat", "dog"), tmp_path)
    with pytest.raises(ConfigError, match=r"label 0 was 'cat' and is 'dog' .*--config.init_from"):
        run_classes.check(("dog", "zebra"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"label 2 was missing and is .zebra. .of 2 and 3 classes"
    ):
        run_classes.check(("cat", "dog", "zebra"), tmp_path)


def test_a_directory_without_classes_has_nothing_to_compare(tmp_path):
    run_classes.check(("cat",), tmp_path)


HOLD = """
import pathlib, sys
from densenet_jax.training.rundir import run_classes, workdir
with workdir.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("cleaned", [False, True])
def test_a_second_run_is_refused_also_after_the_file_of_the_lock_is_gone(tmp_path, cleaned):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        if cleaned:
            (tmp_path / "lock").unlink()
        with pytest.raises(ConfigError, match="is in use by another run"), workdir.locked(tmp_path):
            pass
        process.stdin.close()
    with workdir.locked(tmp_path):
        pass
