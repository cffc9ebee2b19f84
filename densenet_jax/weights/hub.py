"""Downloads from the Hugging Face hub, through its own client: cache, revisions, hashes."""

import functools
import hashlib
import os
import re
import socket
import urllib.parse
import urllib.request

from densenet_jax.weights.published import WEIGHTS_FILE
from densenet_jax.weights.readers.bounded_file import WeightsError
from densenet_jax.weights.timm_config import CONFIG_FILE

HUB_PREFIXES = ("hf-hub:", "hf_hub:")  # of sources such as `hf-hub:owner/name`
WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")


def placed_folder(name: str, revision: str | None = None) -> str:
    """Returns where a user without network puts the files of `name`, found before the hub is asked.

    `$DENSENET_JAX_CACHE` (default: `densenet_jax` in the user's cache folder) names the parent.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    parent = os.environ.get("DENSENET_JAX_CACHE") or os.path.join(cache, "densenet_jax")
    return os.path.join(parent, name.replace("/", "--") + (f"@{revision}" if revision else ""))


def download(repository: str, name: str, revision: str | None, config: bool) -> str:
    """Returns the folder with a repository's weights, from the cache or the hub.

    Args:
      repository: `owner/name`.
      name: what the user asked for.
      revision: branch, tag or commit; None: the main branch.
      config: fetch `config.json` too.

    Raises:
      WeightsError: no client, network, repository, revision or file; what to do instead.
    """
    try:
        from huggingface_hub import constants, errors, hf_hub_download
    except ImportError:
        raise WeightsError(
            f"{name} comes from the Hugging Face hub: pip install huggingface_hub, or "
            f"{_by_hand(repository, name, revision, config)}"
        ) from None

    def fetch(file: str) -> str:
        get = functools.partial(hf_hub_download, repository, file)
        try:
            # What was downloaded once is what later runs use, without asking the hub again.
            return get(revision=revision, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            if not _reachable(constants.ENDPOINT):
                raise
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
        raise WeightsError(f"{repository} has no revision {revision!r} on the hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"The hub has no public repository {repository!r}; check its spelling, or log in "
            "(`hf auth login`) if it is private."
        ) from error
    except errors.EntryNotFoundError as error:
        files = f"{CONFIG_FILE} and one of {', '.join(WEIGHTS_FILES)}"
        raise WeightsError(f"{repository} lacks {files} on the hub.") from error
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{name} cannot be downloaded ({reason}): "
            f"{_by_hand(repository, name, revision, config)}"
        ) from error
    check_hash(path)
    return os.path.dirname(path)


def _reachable(endpoint: str) -> bool:
    """Says at once what the client would find out in half a minute of retries: no name server."""
    address = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies():
        return True  # The proxy resolves names.
    try:
        socket.getaddrinfo(address.hostname, address.port or address.scheme)
    except OSError:
        return False
    return True


def check_hash(path: str, sha256: str | None = None) -> None:
    """Raises WeightsError when a file is not the one of this SHA-256 (in hexadecimal digits).

    Without a hash, the name of the blob that a file in the hub's cache links to is taken: large
    files are stored under their own.
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
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}"
    files = " and ".join(f"{url}/{file}" for file in [WEIGHTS_FILE] + [CONFIG_FILE] * config)
    return f"download {files} and put it into {placed_folder(name, revision)}{os.sep}"
