"""Weights that were trained here and are part of the package: `trained/NAME/`.

A folder has what `export --format=safetensors` writes (model.safetensors, config.json, model.json,
README.md), the run's configuration (run.json) and its metrics.jsonl.  `weights/` at the top of the
checkout is a link to `trained/`.
"""

import pathlib

FOLDER = pathlib.Path(__file__).parent / "trained"

# Name -> its top-1 accuracy.
TRAINED = {
    "densenet_bc_100_12.cpu_c10": "94.96 % on CIFAR-10's test split",
    "densenet_cifar.cpu30_c10": "88.5 % on CIFAR-10's test split",
}


def path_of(source: str) -> str:
    """Returns the folder of weights that are part of the package; any other source as it is."""
    return str(FOLDER / source) if source in TRAINED else source
