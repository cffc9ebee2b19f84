"""Downloads a file: continues an earlier download, and checks size and hash."""

import contextlib
import dataclasses
import hashlib
import http.client
import os
import pathlib
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable

from densenet_jax.data.sources.source import DataError

BLOCK = 2**20  # bytes
TIMEOUT = 30.0  # seconds without a byte
_NETWORK = (  # what goes wrong with a server; other OSErrors are those of the disk
    *(urllib.error.URLError, http.client.HTTPException, ConnectionError, ssl.SSLError),
    *(TimeoutError, ValueError),
)


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file somewhere else.

    Attributes:
      url: where it is.
      digest: its hash in hexadecimal digits, MD5 (32 digits) or SHA-256 (64).
      size: in bytes; None: not known.
    """

    url: str
    digest: str
    size: int | None = None

    @property
    def name(self) -> str:
        """The last part of the URL's path."""
        return urllib.request.url2pathname(self.url.split("?")[0]).rstrip("/").rpartition("/")[2]


def fetch(
    remote: Remote, folder: pathlib.Path, advance: Callable[[int], None] = lambda count: None
) -> pathlib.Path:
    """Returns a downloaded file, which is downloaded unless it is there and has the right hash.

    What has arrived of an unfinished download is in NAME.part; the next call asks for the rest.

    Args:
      remote: the file.
      folder: in which it is put.
      advance: called with the number of bytes that have arrived since the last call.

    Raises:
      DataError: it cannot be downloaded, or has another size or hash than `remote` says.
    """
    if remote.name in ("", ".", ".."):
        raise DataError(f"The URL {remote.url} names no file; pass the one of the archive itself.")
    path = folder / remote.name
    if path.exists():
        check(path, remote)
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(remote, part, advance)
    except _NETWORK as e:
        reason = getattr(e, "reason", None) or e
        raise DataError(
            f"{remote.url} cannot be downloaded ({reason}); try again, which goes on from here, or "
            f"download it yourself to {path}."
        ) from None
    except OSError as e:
        raise DataError(
            f"{part} cannot be written: {e.strerror}; choose another --data-dir."
        ) from e
    try:
        check(part, remote)
    except DataError:
        part.unlink()
        raise
    os.replace(part, path)
    return path


def check(path: pathlib.Path, remote: Remote) -> None:
    """Raises DataError if a file does not have the size and the hash of the remote one."""
    size = path.stat().st_size
    digest = hashlib.new("md5" if len(remote.digest) == 32 else "sha256", usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    wrong = None
    if remote.size not in (None, size):
        wrong = f"has {size:,} bytes instead of {remote.size:,}"
    elif digest.hexdigest() != remote.digest.lower():
        wrong = f"has the {digest.name} {digest.hexdigest()} instead of {remote.digest}"
    if wrong:
        raise DataError(
            f"{path.with_name(path.name.removesuffix('.part'))} {wrong}: it is damaged or another "
            f"file. Remove it, and download it again from {remote.url}."
        )


def _download(remote: Remote, part: pathlib.Path, advance: Callable[[int], None]) -> None:
    """Downloads what `part` lacks of a file."""
    start = part.stat().st_size if part.exists() else 0
    if remote.size is not None and start >= remote.size:
        if start == remote.size:
            advance(start)
            return
        start = 0
    headers = {"User-Agent": "densenet_jax"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(remote.url, headers=headers)
    if request.type not in ("http", "https"):
        raise ValueError("only http and https are possible")
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        if not start or e.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # as long as the file or longer: whether it is the file, only a new one shows
        return _download(remote, part, advance)
    with contextlib.closing(reply) as answer:
        goes_on = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(
            f"bytes {start}-"
        )
        start = start if goes_on else 0  # a server may send the whole file again
        length = answer.headers.get("Content-Length", "")
        expected = start + int(length) if length.isdecimal() else None
        free = start + shutil.disk_usage(part.parent).free
        most = remote.size or min(expected or free, free)
        advance(start)
        with part.open("ab" if start else "wb") as file:
            while block := answer.read(BLOCK):
                start += len(block)
                if start > most:
                    raise ValueError(f"it has more than the {most:,} bytes of the file")
                file.write(block)
                advance(len(block))
    if start < (remote.size or expected or 0):
        raise ValueError(f"the connection ended after {start:,} bytes")
