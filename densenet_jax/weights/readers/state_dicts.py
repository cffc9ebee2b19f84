"""Finds the weights in an unpickled object: a state dict, a checkpoint, a module or a program.

Modules (`torch.save(model)`) and TorchScript programs are objects whose attributes the pickle
lists: their tensors are collected under the names that `state_dict()` would give them, and nothing
of them is called.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from densenet_jax.weights.readers.bounded_file import MAX_NAME, MAX_TENSORS, BoundedFile, shown
from densenet_jax.weights.readers.pickles import Global, Opaque

# Keys under which trainers store the weights, in order of preference. An exponential moving average
# comes before the raw weights, as in timm, because the trainer evaluated the average.
AVERAGE_KEYS = (
    *("state_dict_ema", "model_ema_state_dict", "ema_state_dict", "model_ema", "ema_model", "ema"),
)
STATE_DICT_KEYS = (
    *AVERAGE_KEYS,
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params"),
)
MAX_DEPTH = 32
MAX_STEPS = 3_000_000  # entries of objects
# Parts of a checkpoint that have tensors but no weights.
NO_WEIGHTS = re.compile(
    r"optim|sched|scaler|^opt(_state)?$|^rng|_rng|callbacks|loops|hyper|shadow_params"
)
_LEAVES = ("weight", "bias", "kernel", "gamma", "beta", "running_mean", "running_var")

# Activations that a DenseNet has, or that follow its classifier.
_USUAL = ("ReLU", "Sigmoid", "Softmax", "LogSoftmax")

logger = logging.getLogger(__name__)


class Tensor(NamedTuple):
    """A tensor as the pickle describes it; no field has been checked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    dtype: Any = None


class Inline(NamedTuple):
    """A NumPy array whose elements are in the pickle itself; no field has been checked."""

    data: bytes
    dtype: np.dtype
    big_endian: bool
    shape: Any
    fortran: bool


Value = Tensor | Inline | Opaque


def find(file: BoundedFile, content: object) -> dict[str, Value]:
    """Returns {name: tensor} of the state dict in an unpickled object; empty: there is none.

    The first of `STATE_DICT_KEYS` under which tensors are found is taken, at any depth. Without
    one, all tensors are taken, under the names of the keys that lead to them joined by dots. A
    tensor that cannot be read is an `Opaque`: an error must follow, as skipping it would drop it.

    Args:
      file: the file, for messages and its budget.
      content: the object.

    Raises:
      WeightsError: there are too many tensors, or their names are too long.
    """
    search = _Search(file)
    found = search.find(content, 0)
    if search.activations and found:
        logger.warning(
            "%s is a whole module with the activations %s; only ReLU is assumed, so pass "
            "activation= (relu, silu, gelu or leaky_relu) if one of them follows its norms.",
            *(file.path, ", ".join(sorted(search.activations)[:3])),
        )
    return found


class _Search:
    """A search that looks at each object once for every way to read it, and at a limited number."""

    def __init__(self, file: BoundedFile) -> None:
        self.file = file
        self.steps = 0
        self.seen: set[int] = set()
        self.activations: set[str] = set()  # other than the usual ones

    def find(self, content: object, depth: int) -> dict[str, Value]:
        """Returns the state dict in an object; empty: it has none, or was looked at already."""
        entries = _entries(content)
        if depth > MAX_DEPTH or id(content) in self.seen:
            return {}
        self.seen.add(id(content))
        if entries is None or _is_module(content):
            return self.flat(content)
        if {"params", "batch_stats"} <= entries.keys():  # variables of Flax
            return self.flat(content)
        known = [key for key in STATE_DICT_KEYS if key in entries]
        found = {key: self.find(entries[key], depth + 1) for key in known}
        found = {key: tensors for key, tensors in found.items() if tensors}
        if found:
            return self._first(found)
        # One entry with matrices among others without is the state dict, under a key of its own.
        parts = [{key: value} for key, value in entries.items() if not _has_no_weights(key)]
        matrices = [next(iter(part.values())) for part in parts if _has_matrix(self.flat(part))]
        if len(matrices) == 1 and _entries(matrices[0]) is not None:
            return self.find(matrices[0], depth + 1)
        return self.flat(content)

    def _first(self, found: dict[str, dict[str, Value]]) -> dict[str, Value]:
        """Returns the first of several state dicts, and says so."""
        key, *others = found
        taken = found[key]
        for other in others:
            # Some averages have the parameters alone; the statistics are those of the raw weights.
            if key in AVERAGE_KEYS and taken.keys() < found[other].keys():
                taken = {**found[other], **taken}
                key = f"{key}, completed by {other}"
                break
        if others:
            logger.warning(
                "%s has the weights %s; those of %s are taken.",
                *(self.file.path, ", ".join(found), key),
            )
        return taken

    def flat(self, content: object) -> dict[str, Value]:
        """Returns {dotted name: tensor} of all tensors in an object."""
        result: dict[str, Value] = {}
        for name, value in self._walk(content, "", set(), 0):
            if len(name) > MAX_NAME:
                raise self.file.fail(f"a tensor's name is too long: {shown(name)}")
            if len(result) == MAX_TENSORS:
                raise self.file.fail(
                    f"it holds more than {MAX_TENSORS} tensors; save the state dict alone"
                )
            self.file.charge(4 * len(name))
            result[name] = value
        return result

    def _walk(
        self, content: object, prefix: str, seen: set[int], depth: int
    ) -> Iterator[tuple[str, Value]]:
        """Yields (dotted name, tensor) of the tensors in an object, each object once."""
        entries = _entries(content)
        if entries is None or id(content) in seen or depth > MAX_DEPTH or len(prefix) > MAX_NAME:
            return
        seen.add(id(content))
        if isinstance(content, Opaque) and isinstance(content.callee, Global):
            module, _, name = content.callee.name.rpartition(".")
            if module == "torch.nn.modules.activation" and name not in _USUAL:
                self.activations.add(name)
        self.steps += len(entries)
        if self.steps > MAX_STEPS:
            raise self.file.fail("it holds too many objects; save the state dict alone")
        for key, value in entries.items():
            if isinstance(key, str) and len(key) > MAX_NAME:
                if not isinstance(value, Tensor):
                    continue
                raise self.file.fail(f"a tensor's name is too long: {shown(key)}")
            name = f"{prefix}{key}"
            value = inline(value) or value
            if isinstance(value, Tensor | Inline) or _is_unreadable(name, value):
                yield name, value
            elif not _has_no_weights(key):
                yield from self._walk(value, f"{name}.", seen, depth + 1)


def _entries(content: object) -> dict[Any, Any] | None:
    """Returns the parts of an object by name; None: it has none.

    Those of a module are its parameters, its buffers and its modules.
    """
    if isinstance(content, dict):
        return content
    if isinstance(content, list | tuple) and not isinstance(content, Tensor | Inline):
        return dict(enumerate(content[:100]))
    match content:
        case Opaque(Global("flax.core.frozen_dict.FrozenDict"), (dict(frozen),)):
            return frozen
    if not isinstance(content, Opaque) or not isinstance(content.state, dict):
        return None
    state = content.state
    if not _is_module(content):
        return state
    temporary = state.get("_non_persistent_buffers_set")
    temporary = temporary if isinstance(temporary, list | tuple) else ()
    return {
        key: value
        for kind in ("_parameters", "_buffers", "_modules")
        for key, value in (state[kind].items() if isinstance(state.get(kind), dict) else ())
        if value is not None and not (kind == "_buffers" and key in temporary)
    }


def _has_no_weights(key: object) -> bool:
    """Returns whether the entry of a checkpoint with this key has no weights."""
    return isinstance(key, str) and bool(NO_WEIGHTS.search(key[:64]))


def _is_module(content: object) -> bool:
    return (
        isinstance(content, Opaque)
        and isinstance(content.state, dict)
        and isinstance(content.state.get("_modules"), dict)
    )


def _has_matrix(tensors: dict[str, Value]) -> bool:
    """Returns whether a tensor has two or more dimensions, as the weights of a layer have."""
    return any(
        isinstance(tensor, Opaque) or (isinstance(tensor.shape, tuple) and len(tensor.shape) > 1)
        for tensor in tensors.values()
    )


def _is_unreadable(name: str, value: object) -> bool:
    """Returns whether an object stands for a tensor of a kind that cannot be read."""
    if not isinstance(value, Opaque) or isinstance(value.state, dict):
        return False
    callee = value.callee.name if isinstance(value.callee, Global) else ""
    return "_rebuild" in callee or name.rpartition(".")[2] in _LEAVES


def inline(value: object) -> Inline | None:
    """Returns the NumPy array that an object of a pickle stands for; None: it is none.

    NumPy pickles (version, shape, type, Fortran order, bytes), and the bytes as Latin-1 text where
    the pickle's protocol has no bytes; from protocol 5 on (buffer, type, shape, order). JAX pickles
    what NumPy would have done.
    """
    match value:
        case Opaque(Global("jax._src.array._reconstruct_array"), (callee, args, state, _)):
            return inline(Opaque(callee, args, state))
    match value:
        case Opaque(Global(name), _, (_, shape, dtype, fortran, data)) if name.endswith(
            "multiarray._reconstruct"
        ):
            pass
        case Opaque(Global(name), (data, dtype, shape, order)) if name.endswith("._frombuffer"):
            fortran = order == "F"
        case _:
            return None
    match data:
        case Opaque(Global("_codecs.encode"), (str(text), "latin1")):
            data = text
    match dtype:
        case Opaque(Global("numpy.dtype"), (str(code), *_), state) if re.fullmatch(
            "[fiub][1248]", code
        ):
            big = isinstance(state, tuple) and state[1:2] == (">",)
        case _:
            return None
    try:
        content = data.encode("latin-1") if isinstance(data, str) else data
        known = np.dtype(code)
    except (TypeError, ValueError):
        return None
    return Inline(content, known, big, shape, bool(fortran)) if isinstance(content, bytes) else None
