"""Updates report.html in a thread while a run is training, without interrupting the training."""

import logging
import pathlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from densenet_jax.report.page import REFRESH_SECONDS, write_report

logger = logging.getLogger(__name__)
# Largest share of one core's time that writing pages may take.
SHARE = 0.02


class LiveReport:
    """A listener of a run's records that keeps the run's page up to date.

    A thread writes the page when there are new records: at most every half minute, and less often
    if a page takes long to write.  An error is logged once and leaves only the page out of date.

    Args:
      workdir: the run's directory.
      every_seconds: shortest time between two pages.
    """

    def __init__(self, workdir: str | pathlib.Path, every_seconds: float = REFRESH_SECONDS):
        self._workdir, self._every = workdir, every_seconds
        self._new, self._ended = threading.Event(), threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._keep_fresh, name="live report", daemon=True)

    def restart(self, records: Sequence[dict[str, Any]]) -> None:
        """Starts the thread and requests a page."""
        if not self._thread.is_alive():
            self._thread.start()
        self._new.set()

    def write(self, record: dict[str, Any]) -> None:
        """Requests a page, because there is a new record."""
        self._new.set()

    def close(self, failed: bool) -> None:
        """Writes a last page, which no longer reloads itself."""
        self._ended.set()
        self._new.set()
        if self._thread.is_alive():
            self._thread.join(
                60.0
            )  # the limit: a disk that hangs must not keep the run from ending
        self._write(live=False)

    def _keep_fresh(self) -> None:
        while self._new.wait() and not self._ended.is_set():
            self._new.clear()
            began = time.monotonic()
            self._write(live=True)
            self._ended.wait(max(self._every, (time.monotonic() - began) / SHARE))

    def _write(self, *, live: bool) -> None:
        try:
            write_report(self._workdir, live=live)
        except Exception as e:  # no error of the page may end the training
            if not self._warned:
                self._warned = True
                logger.warning("The page of the run cannot be written now: %s", e)
