"""The meaning of a trained network's outputs: how logits become probabilities or numbers."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda outputs: outputs,
}


TASKS = ("classification", "multilabel", "regression")


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Maps the outputs of a network to its answers: activation(scale * outputs + shift).

    Attributes:
      task: "classification" (one class is right), "multilabel" or "regression".
      activation: a key of `ACTIVATIONS`. Classification has "softmax", or "sigmoid" if the network
        was trained with a separate loss for each class.
      scale: one value for each output, or a single one; (): 1. Calibration sets it (one divided by
        the temperature), and regression, where it is the standard deviation of the targets.
      shift: likewise; (): 0. For regression the mean of the targets.
      thresholds: of multilabel, the probability from which on a label is predicted, one value for
        each label; (): 0.5.
    """

    task: str = "classification"
    activation: str = "softmax"
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()

    def __call__(self, outputs: jax.Array) -> jax.Array:
        """Returns probabilities or numbers in float32 (or float64), [..., C] -> [..., C]."""
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        return ACTIVATIONS[self.activation](self.affine(outputs))

    def affine(self, outputs: jax.Array) -> jax.Array:
        """Returns scale * outputs + shift, [..., C] -> [..., C]."""
        if self.scale:
            outputs = outputs * jnp.asarray(self.scale, outputs.dtype)
        return outputs + jnp.asarray(self.shift, outputs.dtype) if self.shift else outputs

    @property
    def noun(self) -> str:
        """What the answers are, for people and files: "probabilities" or "values"."""
        return "values" if self.task == "regression" else "probabilities"

    def spec(self) -> dict[str, Any]:
        """Returns the fields as a dict for JSON; those at their defaults are left out."""
        default = Outputs(self.task, self.activation)
        fields = dataclasses.asdict(self)
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in fields.items()
            if key in ("task", "activation") or value != getattr(default, key)
        }


def from_spec(spec: Any, count: int) -> Outputs:
    """Returns the outputs that `Outputs.spec` wrote; `count` is the number of a network's outputs.

    Raises:
      ValueError: it is not such a spec, or not of so many outputs.
    """
    if not isinstance(spec, dict) or not spec.keys() <= Outputs.__dataclass_fields__.keys():
        raise ValueError("the meaning of the outputs is not understood")
    fields = dict(spec)
    if fields.get("task") not in TASKS or fields.get("activation") not in ACTIVATIONS:
        raise ValueError("the task or the activation of the outputs is not understood")
    for key in fields.keys() - {"task", "activation"}:
        values = fields[key]
        fine = isinstance(values, list) and len(values) in (1, count)
        if not fine or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise ValueError(f"{key} of the outputs must be 1 or {count} finite numbers")
        fields[key] = tuple(map(float, values))
    return Outputs(**fields)


SOFTMAX = Outputs()
