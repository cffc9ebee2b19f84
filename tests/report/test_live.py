"""The page of a running training: up to date, and never blocking the training."""

import threading
import time

import pytest

from densenet_jax.report import live
from densenet_jax.report.live import LiveReport

DEADLINE = 30.0  # seconds; long enough for very busy machines


def wait_for(condition) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_page_exists_after_the_first_record_and_stops_reloading_at_the_end(workdir):
    page = workdir / "report.html"
    report = LiveReport(workdir)
    report.restart([])
    report.write({"step": 1})
    wait_for(page.exists)
    assert 'http-equiv="refresh"' in page.read_text()
    assert "still running at 2" in page.read_text()
    report.close(failed=False)
    assert 'http-equiv="refresh"' not in page.read_text()
    assert "still running" not in page.read_text()


@pytest.fixture
def written(monkeypatch):
    """Records (live, name of the thread) of each page instead of writing it."""
    pages = []
    monkeypatch.setattr(
        live, "write_report", lambda _, live: pages.append((live, threading.current_thread().name))
    )
    return pages


def test_many_records_make_few_pages_and_none_in_the_training_thread(workdir, written):
    report = LiveReport(workdir)
    report.restart([])
    for step in range(10_000):
        report.write({"step": step})
    wait_for(lambda: written)
    report.close(failed=True)
    assert written == [(True, "live report"), (False, threading.current_thread().name)]


def test_a_page_is_written_only_after_new_records(workdir, written, monkeypatch):
    monkeypatch.setattr(live, "SHARE", 1.0)
    report = LiveReport(workdir, every_seconds=0.0)
    report.restart([])
    for pages in (1, 2, 3):
        wait_for(lambda pages=pages: len(written) == pages)
        report.write({"step": pages})
    wait_for(lambda: len(written) == 4)
    report.close(failed=False)
    assert [live for live, _ in written] == [True] * 4 + [False]


def test_an_unwritable_page_is_logged_once(workdir, monkeypatch, caplog):
    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(live, "write_report", fail)
    report = LiveReport(workdir)
    report.restart([])
    report.close(failed=False)
    assert caplog.text.count("cannot be written now: no room") == 1
