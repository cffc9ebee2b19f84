"""The user's cache folder, for files that can be made or downloaded again."""

import functools
import os
import tempfile


def user_cache() -> str:
    """Returns the absolute path of this project's folder in the user's cache; it may not exist yet.

    That is `densenet_jax` in $XDG_CACHE_HOME (ignored if it is relative, as its specification
    says), or in ~/.cache.  A user without a home (a container with any user number) has a folder
    in the temporary one, which nobody else can write.
    """
    for cache in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(cache):
            return os.path.join(cache, "densenet_jax")
    return _temporary_folder()


@functools.cache  # one a process
def _temporary_folder() -> str:
    if not hasattr(os, "getuid"):  # Windows, whose temporary folder is the user's own
        return os.path.join(tempfile.gettempdir(), "densenet_jax")
    folder = os.path.join(tempfile.gettempdir(), f"densenet_jax-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    private = status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if private else tempfile.mkdtemp(prefix="densenet_jax-")
