"""How the CPU kernels' library comes about."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from densenet_jax.models.block import implementations
from densenet_jax.models.cpu import building, library
from tests.models.gpu.test_stages import layers

ROOT = Path(__file__).parents[3]
CALLS = len(list(building.SOURCES.glob("*.cc"))) + 1  # each source is compiled, then all are linked
# A stand-in for a compiler, which takes a while and notes each call.
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo 1; exit; fi
echo call >> {calls}
for name; do :; done
sleep 0.3; echo made > "$name"
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    path, calls = tmp_path / "c++", tmp_path / "calls"
    path.write_text(COMPILER.format(calls=calls))
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return calls


def test_several_processes_build_one_library(tmp_path, compiler):
    directory = tmp_path / "cache"
    left_over = directory / "build-of-a-killed-process"
    left_over.mkdir(parents=True)
    (left_over / "half.o").touch()
    directory.chmod(0o700)
    code = "import pathlib, sys; from densenet_jax.models.cpu import building as n; "
    code += "print(n.build(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(directory)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    paths = {process.communicate()[0].strip() for process in processes}
    assert paths == {str(building.build(directory))}
    (library_path,) = map(Path, paths)
    # Nothing is left over.
    assert set(directory.iterdir()) == {library_path, library_path.with_suffix(".sha256")}
    assert len(compiler.read_text().splitlines()) == CALLS  # the others waited for it


@pytest.mark.parametrize("content", [b"", b"mad", b"made\0", bytes(5)])
def test_damaged_library_is_built_again(tmp_path, compiler, content):
    path = building.build(tmp_path / "cache")
    path.write_bytes(content)
    assert building.build(path.parent) == path
    assert path.read_bytes() == b"made\n"
    path.with_suffix(".sha256").unlink()
    building.build(path.parent)
    assert len(compiler.read_text().splitlines()) == 3 * CALLS


def test_who_waits_for_the_compiler_is_told_why(tmp_path, compiler, capsys):
    building.build(tmp_path / "cache")
    assert "once on a machine" in capsys.readouterr().err
    building.build(tmp_path / "cache")
    assert capsys.readouterr().err == ""


def test_compiler_may_have_arguments(tmp_path, compiler, monkeypatch):
    plain = building.build(tmp_path / "cache")
    monkeypatch.setenv("CXX", f"env LANG=C '{tmp_path / 'c++'}'")
    assert building.build(tmp_path / "cache") != plain
    monkeypatch.setenv("CXX", "'c++")
    with pytest.raises(building.NativeError, match=r"CXX=.* cannot be read"):
        building.build(tmp_path / "cache")


def test_compiler_that_hangs_is_stopped_with_its_children(tmp_path):
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o755)
    with pytest.raises(building.NativeError, match=r"slow fails: .* timed out"):
        building._run([[str(script)], [str(script)]], timeout=0.2)  # waits for no child


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="rights of POSIX")
def test_library_that_others_can_write_is_not_loaded(tmp_path, compiler):
    path = building.build(tmp_path / "cache")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o666)
    with pytest.raises(building.NativeError, match=r"other users can write .*\.so; delete it"):
        building.build(path.parent)
    path.parent.chmod(0o777)
    with pytest.raises(building.NativeError, match=r"can write .*cache; delete it"):
        building.build(path.parent)
    path.parent.chmod(0o700)
    path.chmod(0o700)
    tmp_path.chmod(0o777)
    with pytest.raises(building.NativeError, match=r"every user can write .*, which has cache"):
        building.build(path.parent)


@pytest.mark.parametrize(
    ("script", "said"), [("exit 1", "c++ fails: exit code 1"), (None, "no C++ compiler")]
)
def test_without_a_compiler_plain_jax_runs(tmp_path, monkeypatch, caplog, script, said):
    path = tmp_path / "c++"
    if script:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.forget()
    x, bottleneck = jnp.zeros((1, 4, 4, 8)), layers((1, 1, 8, 4), (3, 3, 4, 2))
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert implementations.choose("cpu", x, bottleneck, 0.0) == "plain"
    finally:
        library.forget()
    (record,) = caplog.records
    assert "plain JAX runs" in record.message
    assert said in record.message


def test_the_kernels_compile_where_there_is_a_compiler():
    # Tests of the kernels are skipped where they cannot be built.
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    assert library.available()
