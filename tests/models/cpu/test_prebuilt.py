"""Libraries that come with a wheel."""

import platform
import shutil

import pytest

from densenet_jax.models.cpu import building, library, prebuilt


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A wheel's folder for a processor that has avx2, with a library for it and a better one."""
    levels = {"best": "avx2 avx512f", "good": "avx2 fma"}
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    monkeypatch.setattr(prebuilt, "LEVELS", {platform.machine(): levels})
    monkeypatch.setattr(building, "processor", lambda: "flags : fma avx avx2")
    monkeypatch.delenv("CXX", raising=False)
    for level in levels:
        (tmp_path / prebuilt.name(level)).write_bytes(b"no library")
    return tmp_path


def test_the_best_library_for_the_processor_is_taken(folder, monkeypatch):
    assert prebuilt.find() == folder / prebuilt.name("good")
    monkeypatch.setattr(building, "processor", lambda: "flags : fma avx avx2 avx512f")
    assert prebuilt.find() == folder / prebuilt.name("best")
    monkeypatch.setattr(building, "processor", lambda: "flags : sse2")
    assert prebuilt.find() is None


def test_products_in_bfloat16_need_a_processor_that_has_them(folder, monkeypatch):
    levels = {"half": "avx2 avx512_bf16", "good": "avx2 fma"}
    monkeypatch.setattr(prebuilt, "LEVELS", {platform.machine(): levels})
    (folder / prebuilt.name("half")).touch()
    assert prebuilt.find("bfloat16") is None
    monkeypatch.setattr(building, "processor", lambda: "flags : fma avx avx2 avx512_bf16")
    assert prebuilt.find("bfloat16") == folder / prebuilt.name("half")
    assert prebuilt.find() == folder / prebuilt.name("good")


def test_a_library_of_other_sources_is_not_taken(folder, monkeypatch):
    monkeypatch.setattr(building, "sources", lambda: ["other"])
    assert prebuilt.find() is None


def test_a_compiler_that_the_user_names_goes_before(folder, monkeypatch):
    monkeypatch.setenv("CXX", "c++")
    assert prebuilt.find() is None


@pytest.mark.skipif(not library.available(), reason="no C++ compiler")
@pytest.mark.parametrize("loads", [True, False])
def test_a_library_that_loads_needs_no_compiler(folder, monkeypatch, loads):
    built = building.build(building.cache_directory())
    if loads:
        shutil.copy(built, folder / prebuilt.name("good"))
        monkeypatch.setenv("PATH", "")
    path, functions, width, _ = library._load("float32")
    assert path == (folder / prebuilt.name("good") if loads else built)
    assert functions.keys() == set(library.FUNCTIONS)
    assert width == library.panel_width()
