"""The dossier of a run: one page and a folder that answer the questions of readers of a study.

It holds the data card, scores with intervals, thresholds, calibration and coverage, robustness, a
check of the activation maps, failures, and the commands that repeat all of it.  It also lists the
items of reporting checklists that only people can answer.
"""

from densenet_jax.dossier.write import PAGE_NAME, write

__all__ = ["PAGE_NAME", "write"]
