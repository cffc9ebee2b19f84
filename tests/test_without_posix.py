"""What only POSIX has is missing on Windows; a run works without it."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
HIDE = """
import builtins, os, signal, sys
real = builtins.__import__
def hidden(name, globals=None, *more, **named):
    # From the project alone: other packages choose by the system and not by what is there.
    if name in ("fcntl", "resource", "pwd", "grp", "termios"):
        if (globals or {}).get("__name__", "").startswith("densenet_jax"):
            raise ImportError(name)
    return real(name, globals, *more, **named)
builtins.__import__ = hidden
for name in ("sched_getaffinity", "getuid", "killpg"):
    delattr(os, name)
del signal.SIGHUP
sys.argv = ["main.py", *sys.argv[1:]]
from densenet_jax.__main__ import main
sys.exit(main())
"""
TINY = [
    f"--config={ROOT}/configs/digits.py",
    *("--config.total_steps=2", "--config.model.depth=7", "--config.model.bottleneck=False"),
    *("--config.model.growth_rate=4", "--config.data.image_size=8", "--config.mesh.data=1"),
    "--config.model.implementation=auto",
]


def run(*words):
    return subprocess.run(
        [sys.executable, "-c", HIDE, *words], cwd=ROOT, capture_output=True, text=True
    )


def test_a_run_ends_and_a_second_one_in_its_directory_is_refused(tmp_path):
    import filelock

    said = run(*TINY, f"--workdir={tmp_path}")
    assert said.returncode == 0, said.stderr
    assert "no C++" not in said.stderr
    with filelock.FileLock(tmp_path / "lock.windows"):
        said = run(*TINY, f"--workdir={tmp_path}", "--config.total_steps=4")
    assert said.returncode == 2
    assert "is in use by another run" in said.stderr
    assert os.path.exists(tmp_path / "report.html")
