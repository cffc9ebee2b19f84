"""report.html while the run goes on: written aside from the training, which it never stops."""

import logging
import pathlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from densenet_jax.report.page import REFRESH_SECONDS, write_report

logger = logging.getLogger(__name__)
# At most this share of one core's time goes into pages.
SHARE = 0.02


class LiveReport:
    """A listener of a run's records that keeps its page fresh.

    A thread writes the page when there are new records, every half minute at most, and less often
    where the page takes long.  What goes wrong is said once and costs nothing but the page.
    """

    def __init__(self, workdir: str | pathlib.Path, every_seconds: float = REFRESH_SECONDS):
        self._workdir, self._every = workdir, every_seconds
        self._new, self._ended = threading.Event(), threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._keep_fresh, name="live report", daemon=True)

    def restart(self, records: Sequence[dict[str, Any]]) -> None:
        if not self._thread.is_alive():
            self._thread.start()
        self._new.set()

    def write(self, record: dict[str, Any]) -> None:
        self._new.set()

    def close(self, failed: bool) -> None:
        """Writes a last page, which no longer loads itself again."""
        self._ended.set()
        self._new.set()
        if self._thread.is_alive():
            self._thread.join(60.0)  # a disk that hangs holds up no end of a training
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
        except Exception as e:  # whatever it is, a training is worth more than its page
            if not self._warned:
                self._warned = True
                logger.warning("The page of the run cannot be written now: %s", e)
