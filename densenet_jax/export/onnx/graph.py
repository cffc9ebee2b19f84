"""A graph of ONNX operators, built node by node, with feature maps [B, C, H, W] as in ONNX.

Each node is named after the module that it computes, so that a profile of the graph reads like the
network.  Kernels are passed in Flax's layout [h, w, in, out] and stored in ONNX's [out, in, h, w].
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from densenet_jax.export.onnx.opsets import OPSET

LAYER_NORM = 17  # the first opset with LayerNormalization
MEAN_OF_AXES = 18  # the first opset in which ReduceMean takes its axes as an input

_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
_TYPES[np.dtype(np.uint16)] = TensorProto.UINT16


class Graph:
    """A graph under construction: its nodes and constants.

    Methods that build add nodes and return the name of the last node's output.

    Attributes:
      opset: the version of the operators, see `opsets`.
    """

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node whose single output has the node's name.

        Args:
          operator: the ONNX operator, such as "Conv".
          name: of the node and its output; unique in the graph.
          *inputs: names of its inputs.
          **attributes: of the operator.
        """
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        """Adds a constant; integers keep their type, anything else is stored as float32."""
        value = np.asarray(value)
        if not np.issubdtype(value.dtype, np.integer):
            value = value.astype(np.float32)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def conv(
        self,
        name: str,
        x: str,
        kernel: Any,
        bias: Any = None,
        *,
        stride: int = 1,
        pad: int | None = None,
        groups: int = 1,
        same: bool = False,
    ) -> str:
        """Convolves x.

        Args:
          name: of the node.
          x: feature maps [B, in, H, W].
          kernel: [k, k, in / groups, out].
          bias: [out]; None: no bias.
          stride: in both directions.
          pad: zeros on each side; None: k // 2.
          groups: number of groups of channels that are convolved separately.
          same: whether the padding is TensorFlow's "same" instead of `pad`.
        """
        size = kernel.shape[0]
        pad = size // 2 if pad is None else pad
        kernel = np.asarray(kernel).transpose(3, 2, 0, 1)
        inputs = [x, self.constant(f"{name}/kernel", kernel)]
        if bias is not None:
            inputs.append(self.constant(f"{name}/bias", bias))
        window = _window(size, stride, None if same else pad)
        return self.add("Conv", name, *inputs, **window, group=groups)

    def batch_norm(self, name: str, x: str, params: dict, statistics: dict, epsilon: float) -> str:
        """Normalises x [B, C, H, W] with running statistics.

        Args:
          name: of the node.
          x: the input.
          params: {"scale": [C], "bias": [C]}.
          statistics: {"mean": [C], "var": [C]}.
          epsilon: added to the variance.
        """
        values = {**params, **statistics}
        keys = ("scale", "bias", "mean", "var")
        inputs = [self.constant(f"{name}/{key}", values[key]) for key in keys]
        return self.add("BatchNormalization", name, x, *inputs, epsilon=epsilon)

    def layer_norm(self, name: str, x: str, params: dict, epsilon: float) -> str:
        """Normalises the last axis of x [..., C]; params are {"scale": [C], "bias": [C]}."""
        scale, bias = (self.constant(f"{name}/{key}", params[key]) for key in ("scale", "bias"))
        if self.opset >= LAYER_NORM:
            return self.add("LayerNormalization", name, x, scale, bias, axis=-1, epsilon=epsilon)
        centred = self.add("Sub", f"{name}/centred", x, self.mean(f"{name}/mean", x, [-1]))
        squares = self.add("Mul", f"{name}/squares", centred, centred)
        variance = self.mean(f"{name}/variance", squares, [-1])
        epsilon_name = self.constant(f"{name}/epsilon", epsilon)
        root = self.add("Add", f"{name}/shifted", variance, epsilon_name)
        root = self.add("Sqrt", f"{name}/root", root)
        y = self.add("Div", f"{name}/normalised", centred, root)
        y = self.add("Mul", f"{name}/scaled", y, scale)
        return self.add("Add", name, y, bias)

    def mean(self, name: str, x: str, axes: list[int]) -> str:
        """Means of x over some axes, which are kept with size 1."""
        if self.opset < MEAN_OF_AXES:
            return self.add("ReduceMean", name, x, axes=axes, keepdims=1)
        over = self.constant(f"{name}/axes", np.asarray(axes, np.int64))
        return self.add("ReduceMean", name, x, over, keepdims=1)

    def dense(self, name: str, x: str, kernel: Any, bias: Any) -> str:
        """Multiplies the last axis of x [..., in] with a kernel [in, out] and adds a bias [out]."""
        y = self.add("MatMul", f"{name}/matmul", x, self.constant(f"{name}/kernel", kernel))
        return self.add("Add", name, y, self.constant(f"{name}/bias", bias))

    def pool(
        self, operator: str, name: str, x: str, size: int, stride: int, pad: int | None = 0
    ) -> str:
        """Pools windows of size x size of x [B, C, H, W]; operator: MaxPool or AveragePool.

        Without `pad` (None), the padding is TensorFlow's "same".
        """
        window = _window(size, stride, pad)
        return self.add(operator, name, x, **window)

    def activation(self, x: str, name: str) -> str:
        """Applies an activation of `models.activation` to x.

        Raises:
          TypeError: the activation has no ONNX export.
        """
        if name == "relu":
            return self.add("Relu", f"{x}/relu", x)
        if name == "leaky_relu":
            return self.add("LeakyRelu", f"{x}/leaky_relu", x, alpha=0.01)
        if name == "silu":
            return self.add("Mul", f"{x}/silu", x, self.add("Sigmoid", f"{x}/sigmoid", x))
        if name == "gelu":
            return self.gelu(f"{x}/gelu", x)
        raise TypeError(
            f"The activation {name!r} cannot be exported to ONNX; relu, leaky_relu, silu and gelu "
            "can."
        )

    def gelu(self, name: str, x: str) -> str:
        """Adds x (1 + erf(x / sqrt 2)) / 2 in the form that ONNX Runtime fuses to one kernel."""
        y = self.add("Div", f"{name}/div", x, self.constant(f"{name}/root", np.sqrt(2.0)))
        y = self.add("Erf", f"{name}/erf", y)
        y = self.add("Add", f"{name}/add", y, self.constant(f"{name}/one", 1.0))
        y = self.add("Mul", f"{name}/mul", x, y)
        return self.add("Mul", name, y, self.constant(f"{name}/half", 0.5))

    def global_pool(self, x: str, name: str) -> str:
        """Pools x [B, C, H, W] over positions to [B, C] or, for "catavgmax", [B, 2 C].

        Args:
          x: feature maps.
          name: of the pooling: "avg", "max", "avgmax" or "catavgmax", see `models.pooling`.
        """
        pools = {"avg": ["Average"], "max": ["Max"]}.get(name, ["Average", "Max"])
        pooled = [self.add(f"Global{pool}Pool", f"pool/{pool.lower()}", x) for pool in pools]
        if name == "catavgmax":
            pooled = [self.add("Concat", "pool/both", *pooled, axis=1)]
        if name == "avgmax":
            total = self.add("Add", "pool/sum", *pooled)
            pooled = [self.add("Mul", "pool/mean", total, self.constant("pool/half", 0.5))]
        return self.add("Flatten", "pooled", *pooled)

    def channels_last(self, x: str) -> str:
        """Transposes [B, C, H, W] to [B, H, W, C]."""
        return self.add("Transpose", f"{x}/nhwc", x, perm=[0, 2, 3, 1])

    def channels_first(self, x: str) -> str:
        """Transposes [B, H, W, C] to [B, C, H, W]."""
        return self.add("Transpose", f"{x}/nchw", x, perm=[0, 3, 1, 2])

    def model(
        self, inputs: dict[str, tuple], outputs: dict[str, tuple], metadata: dict[str, str]
    ) -> onnx.ModelProto:
        """Returns the graph as a model that passed ONNX's checker.

        Args:
          inputs, outputs: {name: (element type, shape)}; a string in a shape names a dimension of
            any size.
          metadata: strings to store in the file.
        """
        sources, results = (
            [helper.make_tensor_value_info(n, _TYPES[np.dtype(t)], s) for n, (t, s) in side.items()]
            for side in (inputs, outputs)
        )
        constants = [*self.constants.values()]
        graph = helper.make_graph(self.nodes, "densenet_jax", sources, results, constants)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(
            graph,
            producer_name="densenet_jax",
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model


def _window(size: int, stride: int, pad: int | None) -> dict[str, Any]:
    """Returns the attributes of a square window; None for `pad`: TensorFlow's padding "same"."""
    padding = {"auto_pad": "SAME_UPPER"} if pad is None else {"pads": [pad] * 4}
    return {"kernel_shape": [size] * 2, "strides": [stride] * 2, **padding}
