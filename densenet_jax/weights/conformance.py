"""Conformance of DenseNet implementations: the right values of every stage, and known faults.

Weights and images follow from formulas, so that any framework can make them. The network here is
written out once more, in the order of the paper and with known faults of implementations as
options: if another implementation differs, the fault that gives the same numbers is the likely one.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.stem import STEMS
from densenet_jax.weights import names
from densenet_jax.weights.conventions import of_model
from densenet_jax.weights.readers.bounded_file import WeightsError

STEMS_WRITTEN_OUT = ("imagenet", "imagenet_same", "cifar", "cifar_half")
TOLERANCE = 1e-4  # of differences, relative to the largest number of a stage


class Rules(NamedTuple):
    """How the network is computed; the defaults are those of the model."""

    stem_relu: bool = True
    stem_same: bool | None = None  # padding "same"; None: as the model's stem
    max_ceil: bool = False
    epsilon: float | None = None  # None: the model's
    batch_statistics: bool = False
    transition_relu: bool = True
    pool_first: bool = False
    average_ceil: bool = False
    new_first: bool = False
    final_norm: bool = True
    final_relu: bool = True
    mirrored: bool = False
    bgr: bool = False


RIGHT = Rules()
FAULTS: dict[str, Rules] = {
    "the channels of the images are in the order blue, green, red": Rules(bgr=True),
    "kernels are mirrored (a convolution instead of a correlation)": Rules(mirrored=True),
    'the stem pads "same" (TensorFlow), not 3 and 1 on every side': Rules(stem_same=True),
    'the stem pads 3 and 1 on every side, not "same" (TensorFlow)': Rules(stem_same=False),
    "the stem has no ReLU after its normalisation": Rules(stem_relu=False),
    "the max pooling rounds its size up": Rules(max_ceil=True),
    "the epsilon of the normalisations is 1e-3": Rules(epsilon=1e-3),
    "the epsilon of the normalisations is 1e-5": Rules(epsilon=1e-5),
    "the normalisations use the batch's statistics (training mode)": Rules(batch_statistics=True),
    "a dense layer puts its new maps before the old ones": Rules(new_first=True),
    "the transitions have no ReLU after their normalisation": Rules(transition_relu=False),
    "the transitions pool before they normalise": Rules(pool_first=True),
    "the average pooling rounds its size up": Rules(average_ceil=True),
    "the last normalisation is missing": Rules(final_norm=False),
    "the ReLU after the last normalisation is missing": Rules(final_relu=False),
}


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float64 numbers from 0 to 1 that follow from a name: a hash of name and position."""
    mixed: Any = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64) * 2654435761
    mixed = (mixed + zlib.crc32(name.encode())) % 2**32
    mixed = (mixed ^ mixed >> 16) * 73244475 % 2**32
    return ((mixed ^ mixed >> 16) / 2**32).reshape(shape)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float32 tensor of a name in PyTorch's state dict, kernels as [out, in, k, k]."""
    u = numbers(name, shape)
    if name.endswith("running_mean"):
        u = 0.4 * u - 0.2
    elif name.endswith("running_var"):
        u = 0.1 + u
    elif len(shape) > 1:  # a convolution, or the classifier
        u = (2 * u - 1) * np.sqrt(6 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        u = 0.7 + 0.6 * u
    else:
        u = 0.4 * u - 0.2
    return u.astype(np.float32)


def images(size: int, channels: int = 3) -> np.ndarray:
    """Returns two normalised float32 images [2, size, size, channels], not symmetric."""
    ramp = np.arange(size)[:, None] - 0.5 * np.arange(size)
    noise = 2 * numbers("images", (2, size, size, channels)) - 1
    return (noise + 2 * ramp[..., None] / size).astype(np.float32)


def state_dict(model: nn.Module) -> dict[str, np.ndarray]:
    """Returns the weights that follow from the formula, under the names of PyTorch."""
    convention, found = of_model(model), {}
    for path, target in names.shapes(model).items():
        name, axes = convention.name(path), convention.axes(path, len(target.shape))
        found[name] = tensor(name, tuple(target.shape[axis] for axis in axes))
    return found


def stages(
    model: nn.Module, variables: Any, given: np.ndarray, rules: Rules = RIGHT
) -> dict[str, jax.Array]:
    """Returns the maps [B, H, W, C] after each stage, and "logits" [B, classes] if there are any.

    Stages are "stem", "block1", "transition1", ..., and "final", the last maps before the pooling.

    Args:
      model: a DenseNet.
      variables: {"params": ..., "batch_stats": ...} of it.
      given: images [B, H, W, C], normalised.
      rules: how the network is computed.

    Raises:
      WeightsError: the network is no DenseNet with one of `STEMS_WRITTEN_OUT`.
    """
    if not isinstance(model, DenseNet) or model.stem not in STEMS_WRITTEN_OUT:
        raise WeightsError(
            "Only a DenseNet with one of the stems "
            f"{', '.join(STEMS_WRITTEN_OUT)} can be verified; compare logits with `predict`."
        )
    params, statistics = variables["params"], variables["batch_stats"]
    epsilon = model.norm_epsilon if rules.epsilon is None else rules.epsilon
    stem = STEMS[model.stem]
    same = model.stem == "imagenet_same" if rules.stem_same is None else rules.stem_same

    def conv(x, kernel, stride=1, same=False):
        if rules.mirrored:
            kernel = kernel[::-1, ::-1]
        padding = "SAME" if same else [(k // 2, k // 2) for k in kernel.shape[:2]]
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout)

    def norm(x, own, running, relu=True):
        mean, var = running["mean"], running["var"]
        if rules.batch_statistics:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = (x - mean) / jnp.sqrt(var + epsilon) * own["scale"] + own["bias"]
        return jax.nn.relu(y) if relu else y

    x = jnp.asarray(given)[..., :: -1 if rules.bgr else 1]
    x = conv(x, params["conv0"]["kernel"], stem.convolutions[0].stride, same)
    if stem.norm:
        x = norm(x, params["norm0"], statistics["norm0"], rules.stem_relu)
        x = _pool(x, lax.max, -jnp.inf, 3, "SAME" if same else 1, rules.max_ceil)
    found = {"stem": x}
    for i, plan in enumerate(model.plan(), start=1):
        block, running = params[f"denseblock{i}"], statistics[f"denseblock{i}"]
        for layer in (f"denselayer{j}" for j in range(1, plan.depth + 1)):
            y = x
            for part in ("1", "2") if plan.bottleneck else ("1",):
                y = norm(y, block[layer][f"norm{part}"], running[layer][f"norm{part}"])
                y = conv(y, block[layer][f"conv{part}"]["kernel"])
            x = jnp.concatenate([y, x] if rules.new_first else [x, y], axis=-1)
        found[f"block{i}"] = x
        if plan.kept is None:
            break
        own, running = params[f"transition{i}"], statistics[f"transition{i}"]
        halved = (lax.add, 0.0, 2, 0, rules.average_ceil)
        x = _pool(x, *halved) if rules.pool_first else x
        x = norm(x, own["norm"], running["norm"], rules.transition_relu)
        x = conv(x, own["conv"]["kernel"])
        x = x if rules.pool_first else _pool(x, *halved)
        found[f"transition{i}"] = x
    if rules.final_norm:
        x = norm(x, params["norm_final"], statistics["norm_final"], rules.final_relu)
    found["final"] = x
    if model.num_classes and model.global_pool == "avg":
        head = params["classifier"]
        found["logits"] = x.mean((1, 2)) @ head["kernel"] + head["bias"]
    return found


def _pool(x, operation, start, size, pad, ceil):
    """Returns maxima, or means (`operation` is `lax.add`), of windows with stride 2."""
    if pad != "SAME":
        spare = [(n + 2 * pad - size) % 2 * ceil for n in x.shape[1:3]]
        pad = [(0, 0), *((pad, pad + more) for more in spare), (0, 0)]
    window, step = (1, size, size, 1), (1, 2, 2, 1)

    def over(x, operation, start):
        return lax.reduce_window(x, start, operation, window, step, pad)

    if operation is lax.max:
        return over(x, operation, start)
    return over(x, operation, start) / over(jnp.ones_like(x), operation, start)


def summary(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns what a golden file holds: of maps their means [B, C] and sizes, and the logits.

    The keys are those of `stages`; "SHAPE.size" is the height and width of the maps.
    """
    result: dict[str, np.ndarray] = {}
    for stage, values in found.items():
        array = np.asarray(values, np.float32)
        if array.ndim == 4:
            result[f"{stage}.size"] = np.asarray(array.shape[1:3], np.int64)
            array = array.mean((1, 2))
        result[stage] = array
    return result


class Verdict(NamedTuple):
    """How answers compare with the model's.

    Attributes:
      differences: {stage: largest difference, relative to the stage's largest number}, in order;
        infinite: the shapes differ.
      first: the first stage that differs; "": none does.
      faults: what gives the same numbers as the answers, in words.
    """

    differences: dict[str, float]
    first: str
    faults: tuple[str, ...]


def verify(model: nn.Module, variables: Any, given: np.ndarray, answers: Mapping) -> Verdict:
    """Compares another implementation's answers with those of the model.

    Args:
      model, variables: as of `stages`.
      given: the images.
      answers: {stage: means [B, C] or maps [B, H, W, C], or logits}, and optionally sizes, see
        `summary`; stages may be missing.

    Raises:
      WeightsError: no stage is known, or the network is not written out here.
    """

    def expected(rules: Rules) -> dict[str, np.ndarray]:
        return summary(jax.jit(lambda v, x: stages(model, v, x, rules))(variables, given))

    theirs = summary(cast(Mapping[str, Any], answers))
    ours = expected(RIGHT)
    if not theirs.keys() & ours.keys():
        raise WeightsError(
            f"The answers hold none of the stages {', '.join(k for k in ours if '.' not in k)}, "
            f"but {', '.join(sorted(theirs)[:3]) or 'nothing'}; name its arrays after them."
        )
    differences = _differences(ours, theirs)
    first = next((stage for stage, d in differences.items() if not d <= TOLERANCE), "")
    faults = []
    if first:
        for words, rules in FAULTS.items():
            try:
                found = _differences(expected(rules), theirs)
            except (TypeError, ValueError):  # a fault that this network cannot have
                continue
            if max(found.values()) <= TOLERANCE:
                faults.append(words)
    return Verdict(differences, first, tuple(faults))


def _differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    result: dict[str, float] = {}
    for stage, values in ours.items():
        if stage not in theirs:
            continue
        same_shape = values.shape == theirs[stage].shape
        largest = max(float(np.abs(values).max()), 1e-6)
        apart = float(np.abs(values - theirs[stage]).max()) / largest if same_shape else np.inf
        key = stage.removesuffix(".size")
        result[key] = max(result.get(key, 0.0), apart if apart == apart else np.inf)
    return dict(sorted(result.items(), key=lambda item: _place(item[0])))


def _place(stage: str) -> tuple[int, int, str]:
    """Returns a key that sorts stages as the network computes them; JAX sorts them by name."""
    kind = stage.rstrip("0123456789")
    number = int(stage.removeprefix(kind) or 0)
    return {"stem": 0, "final": 2, "logits": 3}.get(kind, 1), number, kind
