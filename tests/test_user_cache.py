"""Where the user's cache folder is."""

import os

from densenet_jax import user_cache


def test_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache.user_cache() == str(tmp_path / "xdg" / "densenet_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # ignored, as its specification says
    assert user_cache.user_cache() == str(tmp_path / ".cache" / "densenet_jax")


def test_user_without_a_home_has_a_private_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, not in /etc/passwd
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    user_cache._temporary_folder.cache_clear()
    folder = user_cache.user_cache()
    assert folder == str(tmp_path / f"densenet_jax-{os.getuid()}")
    assert user_cache.user_cache() == folder
    os.chmod(folder, 0o777)  # anybody may have put something there
    user_cache._temporary_folder.cache_clear()
    assert os.stat(user_cache.user_cache()).st_mode & 0o777 == 0o700
    user_cache._temporary_folder.cache_clear()
