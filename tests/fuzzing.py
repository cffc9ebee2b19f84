"""The settings of the fuzz tests: seeded and short, or of any length with FUZZ_EXAMPLES=N."""

import os

import hypothesis
from hypothesis import HealthCheck

LONGER = os.environ.get("FUZZ_EXAMPLES")


def fuzz(examples: int) -> hypothesis.settings:
    """Returns the settings of a test of so many examples, the same ones each time.

    With FUZZ_EXAMPLES=N there are N, and others each time; a failure is printed and kept.
    """
    return hypothesis.settings(
        max_examples=int(LONGER or examples),
        deadline=None,
        derandomize=LONGER is None,
        suppress_health_check=list(HealthCheck),
    )
