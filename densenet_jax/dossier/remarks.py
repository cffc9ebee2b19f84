"""The remarks at the top of a dossier: sentences about weak points, to read before any number."""

from typing import Any

from densenet_jax.dossier.record import BOTH
from densenet_jax.tasks.by_name import find_task
from densenet_jax.tasks.task import Metric

FEW = 30  # examples of a kind below which a score says little
ALIKE = 0.5  # correlation above which a map hardly depends on the weights


def about(record: dict[str, Any], scores: dict[str, Any] | None) -> list[str]:
    """Returns the remarks.

    Args:
      record: see `record.measure`.
      scores: of the answers, as the page's template has them under "predictions".
    """
    found = [*_data(record), *_labels(record)]
    if scores is None or record["coverage"] is None:
        found.append("Some answers are not finite numbers: there are no scores.")
    if record["task"] != "regression" and record["calibration"] is None:
        found.append("The probabilities are not calibrated; the command calibrate scales them.")
    if rows := record["robustness"]:
        found += _robustness(rows, find_task(record["task"]).measured[0])
    last = record["maps"]["stages"][-1:]
    if last and last[0]["alike"] is None:
        found.append("The activation maps cannot be compared, because each is constant.")
    elif last and last[0]["alike"] > ALIKE:
        found.append(
            "The activation maps hardly change if all weights are random (correlation "
            f"{last[0]['alike']:.2f}): they show the images' structure, not what was learned."
        )
    return found


def _data(record: dict[str, Any]) -> list[str]:
    """Returns remarks about splits and what they share."""
    data, found = record["data"], list(record["left_out"])
    for split in data["splits"]:
        if split["use"] == BOTH:
            found.append(
                "The split that is scored also chose the checkpoint, so the scores are too "
                "optimistic: score another one, for example with --config.data.eval_split=test."
            )
        for key, what in (
            ("unreadable", "unreadable images"),
            ("duplicates", "images that equal an earlier one"),
            ("conflicts", "images that equal an earlier one of another label"),
        ):
            if split[key]:
                found.append(f"{split['name']} has {what}: {split[key]:,}.")
    if any(split["groups"] is None for split in data["splits"]):
        found.append(
            "Groups, such as patients, are unknown: if several images show one patient, the "
            "intervals are too narrow, and a patient may be in two splits."
        )
    for pair in data["shared"]:
        first, second = pair["uses"]
        found += [
            f"“{first}” and “{second}” share {what} ({pair[what]:,}), so the scores are not those "
            f"of unseen {what}."
            for what in ("images", "groups")
            if pair[what]
        ]
    return found


def _labels(record: dict[str, Any]) -> list[str]:
    """Returns a remark about labels with few examples in the split that is scored."""
    few = []
    for row in record["data"]["labels"]:
        cell = row["cells"][-1]
        kinds = [cell["known"]]
        if "count" in cell:
            kinds = [cell["count"], cell["known"] - cell["count"]]
        if min(kinds) < FEW:
            few.append(f"{row['name']} ({min(kinds)})")
    if not few:
        return []
    shown = ", ".join(few[:10]) + f", and {len(few) - 10} more" * (len(few) > 10)
    return [f"These labels have fewer than {FEW} scored examples with or without them: {shown}."]


def _robustness(rows: list[dict[str, Any]], metric: Metric) -> list[str]:
    """Returns a remark about the change of the images that harms the first metric the most."""
    plain, *changed = rows
    harmed = [row for row in changed if metric.score(row) < metric.score(plain)]
    if not harmed:
        return []
    worst = min(harmed, key=metric.score)
    return [
        f"Of the changes of the images, “{worst['change']}, {worst['strength']}” harms the most: "
        f"{metric.title} {metric.show(plain)} becomes {metric.show(worst)}."
    ]
