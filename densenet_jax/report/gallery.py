"""The pictures of a report and the model's predictions for them, as the page shows them."""

from typing import Any

import numpy as np

from densenet_jax.report import pictures
from densenet_jax.report.estimates import Estimates
from densenet_jax.report.predictions import Predictions

Figure = dict[str, Any]


def of_classes(found: Predictions) -> list[tuple[str, list[Figure]]]:
    """Returns the stored pictures of mistakes and of hits, each kind with its heading.

    Returns:
      [(heading, [{"image", "overlay" (data URIs), "label", "predicted" (names), "probability" (of
      the predicted class), "own" (of the label), "index" (of the example)}, ...]), ...]; kinds
      without pictures are left out.
    """
    mistakes: list[Figure] = []
    hits: list[Figure] = []
    for row, image, heat in zip(found.shown, found.pictures, found.maps, strict=True):
        figure = {
            **_images(image, heat),
            "label": str(found.class_names[found.labels[row]]),
            "predicted": str(found.class_names[found.classes[row, 0]]),
            "probability": float(found.probabilities[row, 0]),
            "own": float(found.own[row]),
            "index": int(found.index[row]),
        }
        (hits if found.correct[row] else mistakes).append(figure)
    kinds = [("Most confident mistakes", mistakes), ("Least confident correct predictions", hits)]
    return [(heading, figures) for heading, figures in kinds if figures]


def of_estimates(found: Estimates) -> list[tuple[str, list[Figure]]]:
    """Returns the stored pictures of the worst answers, each kind with its heading.

    Returns:
      [(heading, [{"image", "overlay" (data URIs), "number" (of the label), "name" (of the label),
      "value" (the model's answer), "true", "index" (of the example)}, ...]), ...]; kinds without
      pictures are left out.
    """
    kinds: dict[str, list[Figure]] = {"Largest errors": []}
    if found.task == "multilabel":
        kinds = {"Surest false positives": [], "Surest false negatives": []}
    headings = list(kinds)
    rows = zip(found.shown, found.shown_for, found.pictures, found.maps, strict=True)
    for row, number, image, heat in rows:
        true = found.labels[row, number]
        if np.isnan(true):
            continue
        figure = {
            **_images(image, heat),
            "number": int(number),
            "name": found.names[number],
            "value": float(found.values[row, number]),
            "true": float(true),
            "index": int(found.index[row]),
        }
        kinds[headings[int(true) if len(kinds) > 1 else 0]].append(figure)
    return [(heading, figures) for heading, figures in kinds.items() if figures]


def _images(image: np.ndarray, heat: np.ndarray) -> dict[str, str]:
    """Returns a picture without and with the map on top, as data URIs."""
    overlay = pictures.overlay(pictures.enlarged(image, 96), heat)
    return {"image": pictures.data_uri(image), "overlay": pictures.data_uri(overlay)}
