"""The page: complete, self-contained, safe with any text, and working for runs without results."""

import dataclasses
import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from densenet_jax.report import (
    ReportError,
    estimates,
    label_scores,
    predictions,
    run_files,
    write_report,
)
from densenet_jax.report.page import count, decimal, in_bytes, names, percent, short
from densenet_jax.report.run_files import differences
from tests.report.conftest import some_numbers, some_predictions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(html.parser.HTMLParser):
    """The page as a browser parses it: tags, text, and the data in scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.data, self.links, self._kept = [], "", {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.text += " " if tag in ("th", "td", "tr") else ""
        self.links += [v for k, v in attributes.items() if k in ("src", "href", "srcset", "action")]
        self._kept = attributes.get("id") if attributes.get("type") == "application/json" else None

    def handle_data(self, data):
        if self._kept:
            self.data[self._kept] = json.loads(data)
            self._kept = None
        else:
            self.text += data


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_a_finished_run(workdir):
    path = write_report(workdir)
    assert path == workdir / "report.html"
    assert sorted(p.name for p in workdir.iterdir() if p.suffix == ".tmp") == []
    assert path.stat().st_size < 200_000
    page = read(path)
    for part in ("Curves", "Confusion", "Classes", "Calibration", "Most confident mistakes"):
        assert part in page.text
    for part in (
        "Least confident correct",
        "Feature reuse",
        "Ablation: accuracy",
        "Model",
        "Environment",
    ):
        assert part in page.text
    assert "75.00%" in page.text  # the best evaluation
    keys = [chart["key"] for chart in page.data["charts"]]
    assert keys == ["loss", "top1", "learning_rate", "images_per_second", "grad_norm"]
    loss = {s["split"]: s for s in page.data["charts"][0]["series"]}
    assert loss["train"]["y"] == [2.5]  # without the NaN
    assert loss["eval"] == {**loss["eval"], "x": [1, 2], "step": [2, 4], "y": [1.5, 1.0]}


def test_the_page_loads_nothing_external(workdir):
    page = read(write_report(workdir))
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "link" in page.tags  # the empty icon; without it browsers would request one
    text = (workdir / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]
    assert "default-src 'none'" in text


def test_html_in_class_names_is_escaped(workdir):
    path = write_report(workdir)
    assert "alert" not in "".join(re.findall(r"<script>(.*?)</script>", path.read_text(), re.S))
    page = read(path)
    assert page.text.count("<script>alert(1)</script>") > 3
    assert "<i>pets</i>" in page.text
    assert "i" not in page.tags
    assert page.tags.count("script") == 7  # the data of two kinds of charts, and five scripts


def test_settings_that_differ_from_the_default_are_shown(workdir, monkeypatch):
    defaults = {"seed": 0, "batch_size": 8, "data.mean": [0.5, 0.25], "gone": 1}
    monkeypatch.setattr("densenet_jax.report.run_files.defaults", lambda: defaults)
    page = read(write_report(workdir))
    changed = page.text.split("Settings that differ from configs/default.py:")[1].split("All ")[0]
    assert "seed" in changed
    assert "batch_size" not in changed
    assert "gone" in changed


def test_a_run_without_metrics(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"name": "m"}, "data": {"name": "d"}}')
    page = read(write_report(tmp_path, live=True))
    assert "the run has written no metrics" in page.text
    assert "This run has no stored predictions yet" in page.text
    assert 'http-equiv="refresh"' in (tmp_path / "report.html").read_text()
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": 0, "split": "train", "loss": 1}\n{'
    )
    (tmp_path / "predictions.npz").write_bytes(b"PK damaged")
    (tmp_path / "insight.json").write_text("[")
    page = read(write_report(tmp_path))
    assert [chart["key"] for chart in page.data["charts"]] == ["loss"]


def test_several_runs(workdir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "seed": 8}))
    path = write_report([workdir, other])
    assert path == tmp_path / "comparison.html"
    page = read(path)
    assert "Differences in configuration" in page.text
    differing = page.text.split("Differences in configuration")[1].split("Curves")[0].split()
    assert differing == ["key", "<b>run", "other", "seed", "7", "8"]
    assert {s["name"] for s in page.data["charts"][0]["series"]} == {"<b>run", "other"}


@pytest.mark.parametrize("workdirs", ["nowhere", ["nowhere"], []])
def test_a_directory_without_a_run_is_refused(tmp_path, workdirs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReportError, match="--workdir"):
        write_report(workdirs)


def test_long_curves_are_reduced(workdir):
    lines = [{"step": i, "epoch": i / 100, "split": "train", "loss": 1.0} for i in range(1, 5001)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curve,) = read(write_report(workdir)).data["charts"][0]["series"]
    assert len(curve["y"]) == 500
    assert curve["step"][0] < 10
    assert curve["step"][-1] > 4990


def test_formatting_of_values():
    assert [percent(None), percent(0.12345), percent(1, 0)] == ["—", "12.35%", "100%"]
    assert [count(999_999), count(33_337_704), count(2.834e9)] == ["999,999", "33.34 M", "2.83 G"]
    assert [in_bytes(12), in_bytes(3 * 2**20)] == ["12 B", "3.0 MiB"]
    written = [short(v) for v in (None, True, 1, "", 0.1, [1, 0.5])]
    assert written == ["none", "true", "1", '""', "0.1", "1, 0.5"]


def test_numbers_with_intervals():
    assert decimal(0.94711, [0.93, 0.96]) == "0.947 (0.930–0.960)"
    assert decimal(12345.6, [0.0001234, 2], 0) == "1.235e+04 (0.0001234–2)"
    assert [decimal(None, [0, 1]), decimal(0.5), decimal(0.5, None, 0)] == ["—", "0.500", "0.5"]


def with_answers(workdir, found):
    """Gives a run the answers of another task."""
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**config, "task": found.task}))
    estimates.save(found, workdir)
    return read(write_report(workdir))


def test_a_run_of_several_labels(workdir, labels):
    page = with_answers(workdir, labels)
    for part in ("mean AUROC", "One label", "Subgroups", "Surest false positives", "patient"):
        assert (part in page.text) == (part != "patient"), part
    text = " ".join(page.text.split())
    assert "Without AUROC, and left out of the means, because the split lacks positive or" in text
    assert "negative examples of them: never." in text
    assert "they do not show whether the labels are right" in text
    assert "Probabilities are not calibrated" in text
    details = page.data["multilabel-details"]
    assert [one["name"] for one in details] == labels.names
    third = text.split("specificity")[1].split("third")[1].split()
    assert third[:2] == [
        f"{np.sum(~np.isnan(labels.labels[:, 1]))}",
        f"{np.nansum(labels.labels[:, 1]):.0f}",
    ]
    assert "0.4" in third[2:7]  # the threshold, after two scores with their intervals
    rows = page.data["subgroup-labels"]
    assert len(rows) == 6
    assert "b" not in page.tags[page.tags.index("table") : page.tags.index("select")]
    assert "Confusion" not in page.text


def test_thresholds_chosen_on_the_same_examples_are_named(workdir, labels):
    page = with_answers(workdir, dataclasses.replace(labels, calibrated="chest/test"))
    text = " ".join(page.text.split())
    assert "calibrated on chest/test, the same examples, on which they look better" in text


def test_a_run_of_numbers(workdir):
    page = with_answers(workdir, some_numbers())
    for part in ("mean absolute error", "Predicted and true", "they do not show whether the true"):
        assert part in page.text
    assert [one["name"] for one in page.data["regression-details"]] == ["age", "weight"]
    assert "Confusion" not in page.text


def test_answers_that_are_not_finite_have_no_scores(workdir, labels):
    values = labels.values.copy()
    values[5] = np.nan
    page = with_answers(workdir, dataclasses.replace(labels, values=values))
    text = " ".join(page.text.split())
    assert "There are no scores, because the answers for 1 of 60 examples are not finite." in text
    assert "One label" not in text


def test_a_page_of_100_labels_is_small(workdir, monkeypatch):
    monkeypatch.setattr(label_scores, "samples", lambda *_: 20)
    rng = np.random.default_rng(0)
    true = (rng.random((400, 100)) < 0.3).astype(np.float32)
    p = rng.random(true.shape).astype(np.float32)
    pictures = rng.integers(0, 256, (96, 112, 112, 3), np.uint8)  # noise: no picture is larger
    shown = np.arange(96)
    names = np.array([f"label {i}" for i in range(100)])
    with_answers(
        workdir,
        estimates.Estimates(
            "multilabel",
            np.arange(400),
            true,
            p,
            names,
            thresholds=np.full(100, 0.5),
            shown=shown,
            shown_for=shown,
            pictures=np.stack([zoom(p) for p in pictures]),
            maps=np.ones((96, 3, 3), np.float32),
        ),
    )
    assert (workdir / "report.html").stat().st_size < 3_000_000


def zoom(picture):
    """Makes a picture as smooth as photographs are."""
    return picture[::8, ::8].repeat(8, 0).repeat(8, 1)


def test_names_of_runs_are_short_and_unique(tmp_path):
    assert names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert names([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]
    assert len(set(names([tmp_path, tmp_path]))) == 2


def test_differences():
    assert differences([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}]) == [
        ("b", [2, 3]),
        ("c", ["—", 4]),
    ]


def visit(workdir, tmp_path, script):
    """Opens a page in a browser, runs a script in it, and returns the title that it set."""
    path = workdir / "report.html"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    return re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_works_in_a_browser_without_errors(workdir, tmp_path):
    write_report(workdir)
    title = visit(
        workdir,
        tmp_path,
        """
      document.querySelectorAll("button, th").forEach((element) => element.click());
      document.querySelector(".chart svg").dispatchEvent(
        new PointerEvent("pointermove", { clientX: 300, clientY: 200, bubbles: true }));
      document.title = document.querySelectorAll(".chart svg path").length + " curves, " +
        document.getElementById("tip").textContent;
    """,
    )
    assert title.startswith("7 curves, epoch ")
    assert "eval: 1" in title


ODD = (5, "x", [5], {"layers": 5, "stages": "x"}, [[["x"]]])


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("key", ["model", "reuse", "ablation"])
def test_a_file_of_another_form_is_left_out_by_name(workdir, key, odd, caplog):
    path = workdir / "insight.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: odd}))
    page = read(write_report(workdir))
    assert "Most confident mistakes" in page.text
    assert "Feature reuse" in page.text or "insight.json is not as" in caplog.text


@pytest.mark.parametrize("content", ["[" * 100_000, "[5]", "7", '[{"devices": 5, "versions": []}]'])
@pytest.mark.parametrize("name", ["environment.json", "insight.json", "evaluation.json"])
def test_odd_json_ends_in_a_page(workdir, name, content):
    (workdir / name).write_text(content)
    assert "75.00%" in read(write_report(workdir)).text


def change(**arrays):
    return lambda found: dataclasses.replace(found, **arrays)


@pytest.mark.parametrize(
    "change",
    [
        change(labels=np.array([0, 1, 2, 9])),
        change(labels=np.array([0, 1, 2])),
        change(classes=np.full((4, 3), -1)),
        change(classes=np.zeros((4, 0), int)),
        change(probabilities=np.full((4, 3), np.nan, np.float32)),
        change(own=np.array("x")),
        change(shown=np.array([1, 3, 10**6])),
        change(pictures=np.array(["a", "b", "c"])),
        change(pictures=np.zeros((3, 0, 8, 3), np.uint8)),
        change(class_names=np.arange(3)),
        change(step=np.zeros(3)),
    ],
)
def test_predictions_that_do_not_fit_together_are_left_out(workdir, change, caplog):
    predictions.save(change(some_predictions()), workdir)
    assert "no stored predictions" in read(write_report(workdir)).text
    assert "predictions.npz cannot be read and is left out" in caplog.text


def test_a_hundred_thousand_classes_need_no_square_of_them(workdir):
    labels = np.array([f"class {i}" for i in range(100_000)])
    predictions.save(dataclasses.replace(some_predictions(), class_names=labels), workdir)
    page = read(write_report(workdir))
    assert "too many classes (100,000)" in page.text
    assert "Of 100,000 classes, these are the 5,000 with the lowest F1" in " ".join(
        page.text.split()
    )


def test_a_pipe_in_the_directory_is_not_waited_for(workdir):
    for name in ("metrics.jsonl", "insight.json", "predictions.npz", "environment.json"):
        (workdir / name).unlink()
        os.mkfifo(workdir / name)
    assert "the run has written no metrics" in read(write_report(workdir)).text


def test_a_configuration_that_is_not_one_is_an_error(workdir):
    for text in ('{"a": 1}', '{"model": 5, "data": null}', '{"task": [1]}', "[" * 100_000):
        (workdir / "config.json").write_text(text)
        with pytest.raises(ReportError, match=r"config\.json"):
            write_report(workdir)


def test_control_characters_of_names_are_escaped(workdir):
    names = np.array(["\u202ecat", "\x1b[2J", "dog"])
    predictions.save(dataclasses.replace(some_predictions(), class_names=names), workdir)
    text = write_report(workdir).read_text(encoding="utf-8")
    assert not {"\u202e", "\x1b"} & set(text)
    assert r"\u202ecat" in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_choosing_a_label_and_a_threshold_in_a_browser(workdir, tmp_path, labels):
    with_answers(workdir, labels)
    title = visit(
        workdir,
        tmp_path,
        """
      document.querySelectorAll("button, th").forEach((element) => element.click());
      document.querySelector("[data-choose='1']").click();
      const slider = document.getElementById("threshold");
      const own = document.getElementById("threshold-value").textContent;
      slider.value = 0;
      slider.dispatchEvent(new Event("input"));
      const cells = [...document.querySelectorAll("[data-count]")].map((cell) => cell.textContent);
      const shown = [...document.querySelectorAll("#pictures figure")].map((one) => !one.hidden);
      const chosen = document.querySelector(".chosen").textContent;
      document.title = [own, ...cells, ...shown, chosen].join(" ");
    """,
    )
    known = labels.labels[:, 1][~np.isnan(labels.labels[:, 1])]
    positives = int(known.sum())
    assert title == f"0.4 {positives} 0 {len(known) - positives} 0 false false third"


def test_duration_of_a_resumed_run(workdir):
    times = [10, 30, 5, 25]  # the run was killed after 30 seconds and started again
    lines = [{"step": i, "split": "train", "seconds": s} for i, s in enumerate(times)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_files.read(workdir).history.seconds == 55
