"""Checks the fused GPU kernels against plain operations, each kernel and a network's gradient.

Used by `gpu.py`.  Without a GPU the kernels are interpreted, which is slow.
"""

import datetime
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import densenet_jax
from densenet_jax.models.block import implementations
from densenet_jax.models.gpu import trial
from densenet_jax.tasks.losses import cross_entropy

# ((batch, height, width), channels of the buffer, channels read, bottleneck, growth rate) of first
# and last layers of DenseNet-121's blocks, of a layer of DenseNet-161, and of a shape that no tile
# divides evenly.
SHAPES = [
    ((32, 56, 56), 256, 64, 128, 32),
    ((32, 56, 56), 256, 224, 128, 32),
    ((32, 28, 28), 512, 480, 128, 32),
    ((32, 14, 14), 1024, 992, 128, 32),
    ((32, 7, 7), 1024, 512, 128, 32),
    ((16, 14, 14), 2112, 2064, 192, 48),
    ((3, 9, 11), 80, 52, 48, 12),
]
TINY_SHAPES = [((2, 4, 8), 64, 32, 32, 16)]

# The gradient with kernels may be this many times as far from the float32 gradient as the gradient
# of plain bfloat16 operations.
FURTHER = 1.25


def _record(what: str, header: list[str], rows: list, note: str) -> dict:
    """Returns a record for `results`."""
    return {
        "kind": "check",
        "what": what,
        "hardware": jax.devices()[0].device_kind,
        "header": header,
        "rows": rows,
        "note": f"{note}; {jax.devices()[0].device_kind}, jax {jax.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def kernels(tiny: bool) -> Iterator[dict]:
    """Yields a record for each kernel and shape: the largest difference from plain operations.

    Args:
      tiny: check a small shape with interpreted kernels, for a machine without a GPU.
    """
    fused = implementations.find("interpreted" if tiny else "gpu")
    for shape in TINY_SHAPES if tiny else SHAPES:
        image, *sizes = shape
        for case in trial.cases(image, *sizes, jnp.bfloat16):
            label = f"{case.kernel}, {image}, {sizes[1]} of {sizes[0]} channels, width {sizes[2]}"
            try:
                difference = case.difference(fused)
                row = [label, difference, "yes" if difference <= trial.BOUND else "NO"]
            except Exception as error:  # the failure of one kernel must not hide the others
                row = [label, "failed", f"NO: {type(error).__name__}: {str(error)[:200]}"]
            note = (
                f"Largest difference over the twin's largest value, bfloat16; bound {trial.BOUND}"
            )
            header = ["kernel", "difference", "within the bound"]
            yield _record("Fused kernels against their plain twins", header, [row], note)


def gradient(tiny: bool) -> Iterator[dict]:
    """Yields a record: a network's gradient in bfloat16, with and without kernels, against float32.

    Args:
      tiny: use a small network with interpreted kernels, for a machine without a GPU.
    """
    fields = {"block_sizes": (2, 2), "growth_rate": 16} if tiny else {}
    batch, size = (2, 32) if tiny else (16, 224)
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
    labels = jnp.arange(batch)
    example = densenet_jax.create_model("densenet121", **fields)
    variables = jax.jit(example.init)(jax.random.key(0), images[:1])

    def gradients(dtype: Any, implementation: str) -> tuple[float, np.ndarray]:
        """Returns the loss and all gradients as one vector, in float64."""
        model = densenet_jax.create_model(
            "densenet121", dtype=dtype, implementation=implementation, **fields
        )

        def loss(params: Any, statistics: Any) -> jax.Array:
            logits, _ = model.apply(
                {"params": params, "batch_stats": statistics},
                images.astype(dtype),
                train=True,
                mutable=["batch_stats"],
            )
            targets = jax.nn.one_hot(labels, logits.shape[-1])
            return cross_entropy(logits.astype(jnp.float32), targets).mean()

        value, tree = jax.jit(jax.value_and_grad(loss))(*variables.values())
        flat = np.concatenate(
            [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
        )
        return float(value), flat

    variables = {name: variables[name] for name in ("params", "batch_stats")}
    exact_loss, exact = gradients(jnp.float32, "plain")
    distances, rows = {}, []
    for name, implementation in (("plain", "plain"), ("kernels", None)):
        implementation = implementation or ("interpreted" if tiny else "gpu")
        loss, flat = gradients(jnp.bfloat16, implementation)
        distances[name] = np.linalg.norm(flat - exact) / np.linalg.norm(exact)
        cosine = flat @ exact / np.linalg.norm(flat) / np.linalg.norm(exact)
        within = distances[name] <= FURTHER * distances["plain"]
        rows.append([name, abs(loss / exact_loss - 1), distances[name], cosine])
        rows[-1].append("yes" if within else "NO")
    network = "a small network" if tiny else "DenseNet-121"
    yield _record(
        f"Gradient of {network} in bfloat16, training mode, against float32",
        ["stages", "loss", "distance of the gradient", "cosine", "within the bound"],
        [[v if isinstance(v, str) else float(v) for v in row] for row in rows],
        f"Batch {batch}, {size}x{size}; relative; bound: {FURTHER} times the plain distance",
    )
