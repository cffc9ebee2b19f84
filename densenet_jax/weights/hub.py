"""Downloads from the Hugging Face hub with its own client, which has a cache and revisions."""

import contextlib
import functools
import hashlib
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

from densenet_jax.user_cache import user_cache
from densenet_jax.weights.published import WEIGHTS_FILE
from densenet_jax.weights.readers.bounded_file import WeightsError
from densenet_jax.weights.timm_config import CONFIG_FILE

HUB_PREFIXES = ("hf-hub:", "hf_hub:")  # of sources such as `hf-hub:owner/name`
WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")


def placed_folder(name: str, revision: str | None = None) -> str:
    """Returns the folder for files of `name` that the user downloads by hand, without a network.

    If the folder exists, it is used instead of the hub. Its parent is `$DENSENET_JAX_CACHE`, by
    default `densenet_jax` in the user's cache folder.
    """
    parent = os.environ.get("DENSENET_JAX_CACHE") or user_cache()
    return os.path.join(parent, name.replace("/", "--") + (f"@{revision}" if revision else ""))


def download(repository: str, name: str, revision: str | None, config: bool) -> str:
    """Returns the folder with a repository's weights, from the cache or the hub.

    Args:
      repository: `owner/name`.
      name: the name that the user asked for, for messages and for `placed_folder`.
      revision: branch, tag or commit; None: the main branch.
      config: whether to download `config.json` too.

    Raises:
      WeightsError: the client is not installed, the hub cannot be reached, it lacks the repository,
        revision or file, or the file is damaged; the message says what to do.
    """
    try:
        from huggingface_hub import constants, errors, get_session, hf_hub_download
    except ImportError:
        raise WeightsError(
            f"{name} is on the Hugging Face hub: pip install huggingface_hub, or "
            f"{_by_hand(repository, name, revision, config)}"
        ) from None

    def fetch(file: str) -> str:
        get = functools.partial(hf_hub_download, repository, file)
        try:
            # Later runs use the file that was downloaded once, without a request to the hub.
            return get(revision=revision, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            if not _reachable(constants.ENDPOINT):
                raise
            with _checked_headers(get_session()):
                return get(revision=revision)

    try:
        if config:
            fetch(CONFIG_FILE)
        for file in WEIGHTS_FILES:
            try:
                path = fetch(file)
                break
            except errors.LocalEntryNotFoundError:
                if file == WEIGHTS_FILES[-1] or not config:
                    raise
            except errors.EntryNotFoundError:
                if file == WEIGHTS_FILES[-1]:
                    raise
    except errors.LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{name} is not on this machine and the hub cannot be reached: "
            f"{_by_hand(repository, name, revision, config)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{repository} has no revision {revision!r} on the hub; check its spelling."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"The hub has no public repository {repository!r}; check its spelling, or log in "
            "(`hf auth login`) if it is private."
        ) from error
    except errors.EntryNotFoundError as error:
        files = f"{CONFIG_FILE} and one of {', '.join(WEIGHTS_FILES)}"
        raise WeightsError(
            f"{repository} lacks {files} on the hub; choose a repository that has them."
        ) from error
    except (
        errors.HTTPError,
        ValueError,
        OSError,
        RecursionError,
    ) as error:  # ValueError: odd headers
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{name} cannot be downloaded ({reason}): "
            f"{_by_hand(repository, name, revision, config)}"
        ) from error
    check_hash(path)
    return os.path.dirname(path)


@contextlib.contextmanager
def _checked_headers(session) -> Iterator[None]:
    """Refuses answers of a hub whose headers would lead the client's files out of its cache.

    The client joins these headers to the path of its cache without looking at them.

    Args:
      session: the client's, of the library `httpx` or, before version 1 of the client, `requests`.
    """

    def check(response, *_, **__):
        if response.request.method != "HEAD":
            return
        for header in ("ETag", "X-Linked-ETag", "X-Repo-Commit"):
            name = response.headers.get(header, "a").lstrip("W/").strip('"')
            if re.search(r"[/\\\0]", name) or name.strip(".") == "":
                raise ValueError(f"its header {header} is no name of a file")

    hooks = getattr(session, "event_hooks", None) or session.hooks
    hooks["response"].append(check)
    try:
        yield
    finally:
        hooks["response"].remove(check)


def _reachable(endpoint: str) -> bool:
    """Returns whether the name of the hub can be resolved.

    Without a name server, the client would retry for half a minute before it fails.
    """
    address = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies():
        return True  # The proxy resolves names.
    try:
        socket.getaddrinfo(address.hostname, address.port or address.scheme)
    except OSError:
        return False
    return True


def check_hash(path: str, sha256: str | None = None) -> None:
    """Checks the SHA-256 of a file.

    Args:
      path: the file.
      sha256: the expected SHA-256, in hexadecimal digits. None: the name of the file to which
        `path` links, if it is a SHA-256, as for large files in the hub's cache; otherwise nothing
        is checked.

    Raises:
      WeightsError: the file has another SHA-256.
    """
    blob = os.path.basename(os.path.realpath(path))
    expected = sha256 or (blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None)
    if expected is None:
        return
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected.lower():
        raise WeightsError(
            f"{path}: its SHA-256 is {actual}, not {expected}; delete it and download it again."
        )


def _by_hand(repository: str, name: str, revision: str | None, config: bool) -> str:
    """Returns the instruction to download the files by hand, for messages."""
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}"
    files = " and ".join(f"{url}/{file}" for file in [WEIGHTS_FILE] + [CONFIG_FILE] * config)
    return f"download {files} and put it into {placed_folder(name, revision)}{os.sep}"
