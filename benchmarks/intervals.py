"""Seconds for the bootstrap intervals of AUROC and average precision.

python benchmarks/intervals.py [--examples=100000] [--labels=14] [--samples=1000] [--groups=30000]
"""

import argparse
import json
import os
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from densenet_jax.scores import intervals


def measure(examples: int, labels: int, samples: int, groups: int) -> dict:
    """Returns the seconds of one call on random float32 scores; 0.2 to 50 % are positive.

    Args:
      examples, labels, samples: their numbers.
      groups: number of groups; 0: every example is its own.
    """
    rng = np.random.default_rng(0)
    targets = (rng.random((examples, labels)) < np.geomspace(0.002, 0.5, labels)).astype(np.float32)
    scores = (rng.normal(size=targets.shape) + 1.2 * targets).astype(np.float32)
    members = rng.integers(groups, size=examples).tolist() if groups else None
    start = time.perf_counter()
    found = intervals.of_ranking(scores, targets, members, samples)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cores": os.cpu_count(),
        "mean_auroc": found["mean_auroc"],
        "mean_average_precision": found["mean_average_precision"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=14)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--groups", type=int, default=0)
    print(json.dumps(measure(**vars(parser.parse_args()))))
