"""Tensor names and layouts of other frameworks <-> the variables of our modules.

A *convention* is a table: rules that rewrite the path of one of our variables to the tensor's name
there, and the axes of its kernels.  Every conversion reads the table, so both directions agree.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

Rules = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Convention:
    """How a framework names and lays out the tensors of a DenseNet.

    Attributes:
      title: for messages.
      rules: (pattern, replacement) pairs, applied in order to `collection/module/.../leaf`.
      conv_axes: transposes our convolution kernels [H, W, in, out] to theirs.
      dense_axes: transposes our dense kernels [in, out] to theirs.
      ignored: pattern of tensors that carry no weight.
    """

    title: str
    rules: Rules
    conv_axes: tuple[int, ...]
    dense_axes: tuple[int, ...]
    ignored: str = r"$^"

    def name(self, path: str) -> str:
        for pattern, replacement in self.rules:
            path = re.sub(pattern, replacement, path)
        return path

    def axes(self, path: str, ndim: int) -> tuple[int, ...]:
        if not path.endswith("/kernel"):
            return tuple(range(ndim))
        return self.conv_axes if ndim == 4 else self.dense_axes


PYTORCH = Convention(
    title="PyTorch (timm, torchvision)",
    rules=(
        (r"^params/(.*)/(scale|kernel)$", r"\1/weight"),
        (r"^params/(.*)$", r"\1"),
        (r"^batch_stats/(.*)/", r"\1/running_"),
        (r"^(?!classifier)", r"features/"),
        (r"/", "."),
    ),
    conv_axes=(3, 2, 0, 1),
    dense_axes=(1, 0),
    ignored=r"num_batches_tracked$",
)


def rename_final_norm(convention: Convention, model: nn.Module) -> Convention:
    """The last norm is called `norm5` in networks for ImageNet, and as here in those for CIFAR."""
    if model.stem == "cifar":
        return convention
    rules = ((r"/norm_final/", "/norm5/"), *convention.rules)
    return dataclasses.replace(convention, rules=rules)


def shapes(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and type of every variable, by `collection/module/.../leaf`."""
    images = jnp.zeros((1, 256, 256, model.in_channels), model.dtype)
    return traverse_util.flatten_dict(
        jax.eval_shape(model.init, jax.random.key(0), images), sep="/"
    )


def from_state_dict(model: nn.Module, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns a state dict's tensors as the variables of `model`.

    Raises:
      ValueError: tensors are missing, left over or of another shape; all of them are named.
    """
    convention = rename_final_norm(PYTORCH, model)
    variables, missing, misshapen = {}, [], []
    left_over = {name for name in state_dict if not re.search(convention.ignored, name)}
    for path, target in shapes(model).items():
        name = convention.name(path)
        if name not in state_dict:
            missing.append(name)
            continue
        left_over.discard(name)
        axes = convention.axes(path, len(target.shape))
        tensor = np.asarray(state_dict[name])
        expected = tuple(target.shape[a] for a in axes)
        if tensor.shape != expected:
            misshapen.append(f"{name} is {tensor.shape}, the model has {expected}")
            continue
        inverse = np.argsort(axes)
        variables[path] = np.ascontiguousarray(tensor.transpose(inverse)).astype(target.dtype)
    if missing or left_over or misshapen:
        raise ValueError(
            f"The weights ({convention.title} names) do not fit the model: "
            f"missing: {_some(missing)}; left over: {_some(left_over)}; "
            f"of another shape: {_some(misshapen)}."
        )
    return traverse_util.unflatten_dict(variables, sep="/")


def to_state_dict(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns variables under the names and layouts of timm and torchvision."""
    convention, state_dict = rename_final_norm(PYTORCH, model), {}
    for path, value in traverse_util.flatten_dict(dict(variables), sep="/").items():
        axes = convention.axes(path, np.ndim(value))
        state_dict[convention.name(path)] = np.ascontiguousarray(np.asarray(value).transpose(axes))
    return state_dict


def _some(names: Iterable[str], most: int = 8) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "nothing"
