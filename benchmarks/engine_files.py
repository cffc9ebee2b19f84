"""Writes what the inference engines of `compare.py` need, in a process of its own.

    python benchmarks/engine_files.py FOLDER '{"batch": 16, "size": 224, "blocks": [...], ...}'

FOLDER gets images.npy [B, H, W, C], float32.onnx, int8.onnx (if the options' dtype is int8), and
weights.npz with torchvision's names: the network of the contender `densenet_jax` as it starts.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import contenders  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402

import densenet_jax  # noqa: E402
from densenet_jax.export.bundle import Bundle  # noqa: E402
from densenet_jax.export.onnx import file, int8  # noqa: E402
from densenet_jax.training import state  # noqa: E402
from densenet_jax.weights import Preprocessing  # noqa: E402


def main() -> None:
    folder, options = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    images = contenders._images({**options, "files": ""})
    np.save(folder / "images.npy", images)
    model = densenet_jax.create_model(
        "densenet121", block_sizes=tuple(options["blocks"]), implementation="plain"
    )
    start = jax.jit(lambda: state.initial_state(model, contenders._optimizer(), 0, (64, 64, 3)))()
    variables = jax.tree.map(np.asarray, start.variables)
    np.savez(folder / "weights.npz", **densenet_jax.weights.to_state_dict(model, variables))
    preprocessing = Preprocessing(image_size=options["size"])
    bundle = Bundle(model, variables, preprocessing, class_names=(), origin="a seed")
    onnx.save(file.to_onnx(bundle), folder / "float32.onnx")
    if options["dtype"] == "int8":
        int8.quantize(folder / "float32.onnx", folder / "int8.onnx", [images])


if __name__ == "__main__":
    main()
