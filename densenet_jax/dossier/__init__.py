"""The dossier of a run: one page and a folder with what a reader of a study asks about a model.

It holds the data card, scores with intervals, thresholds, calibration and coverage, robustness, a
check of the activation maps, failures, and what repeats all of it; and it names what only people
can say.
"""

from densenet_jax.dossier.write import PAGE_NAME, write

__all__ = ["PAGE_NAME", "write"]
