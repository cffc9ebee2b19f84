"""A graph of ONNX operators, built node by node; maps are [B, C, H, W], as ONNX has them.

Every node has the name of the module that it computes, so that a profile of the graph reads like
the network.  Kernels come in our layouts and are stored in ONNX's.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17  # LayerNormalization came with it; ONNX Runtime has it since 1.12 (2022)
IR_VERSION = 8  # the file format of that time

_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}


class Graph:
    """Nodes and constants; each method adds one and returns the name of its output."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def add(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; its only output has its name."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        """Adds a constant, in float32 unless it is of integers."""
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
    ) -> str:
        """Convolves x with a kernel [k, k, in / groups, out], padded by k // 2 unless told."""
        size = kernel.shape[0]
        pad = size // 2 if pad is None else pad
        kernel = np.asarray(kernel).transpose(3, 2, 0, 1)
        inputs = [x, self.constant(f"{name}/kernel", kernel)]
        if bias is not None:
            inputs.append(self.constant(f"{name}/bias", bias))
        window = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return self.add("Conv", name, *inputs, **window, group=groups)

    def batch_norm(self, name: str, x: str, params: dict, statistics: dict, epsilon: float) -> str:
        """Normalises x with running statistics."""
        values = {**params, **statistics}
        keys = ("scale", "bias", "mean", "var")
        inputs = [self.constant(f"{name}/{key}", values[key]) for key in keys]
        return self.add("BatchNormalization", name, x, *inputs, epsilon=epsilon)

    def layer_norm(self, name: str, x: str, params: dict, epsilon: float) -> str:
        """Normalises the last axis of x."""
        inputs = [self.constant(f"{name}/{key}", params[key]) for key in ("scale", "bias")]
        return self.add("LayerNormalization", name, x, *inputs, axis=-1, epsilon=epsilon)

    def dense(self, name: str, x: str, kernel: Any, bias: Any) -> str:
        """Multiplies the last axis of x with a kernel [in, out] and adds a bias."""
        y = self.add("MatMul", f"{name}/matmul", x, self.constant(f"{name}/kernel", kernel))
        return self.add("Add", name, y, self.constant(f"{name}/bias", bias))

    def pool(self, operator: str, name: str, x: str, size: int, stride: int, pad: int = 0) -> str:
        """Pools x; `operator` is MaxPool or AveragePool."""
        window = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return self.add(operator, name, x, **window)

    def activation(self, x: str, name: str) -> str:
        """Applies an activation of `models.activation` to x.

        Raises:
          TypeError: there is no form of it here.
        """
        if name == "relu":
            return self.add("Relu", f"{x}/relu", x)
        if name == "leaky_relu":
            return self.add("LeakyRelu", f"{x}/leaky_relu", x, alpha=0.01)
        if name == "silu":
            return self.add("Mul", f"{x}/silu", x, self.add("Sigmoid", f"{x}/sigmoid", x))
        if name == "gelu":
            return self.gelu(f"{x}/gelu", x)
        raise TypeError(f"activation {name!r} has no form in ONNX here.")

    def gelu(self, name: str, x: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2 in the form that ONNX Runtime fuses to one kernel."""
        y = self.add("Div", f"{name}/div", x, self.constant(f"{name}/root", np.sqrt(2.0)))
        y = self.add("Erf", f"{name}/erf", y)
        y = self.add("Add", f"{name}/add", y, self.constant(f"{name}/one", 1.0))
        y = self.add("Mul", f"{name}/mul", x, y)
        return self.add("Mul", name, y, self.constant(f"{name}/half", 0.5))

    def global_pool(self, x: str, name: str) -> str:
        """Pools maps x [B, C, H, W] over positions to [B, C] or [B, 2 C]; see `models.pooling`."""
        pools = {"avg": ["Average"], "max": ["Max"]}.get(name, ["Average", "Max"])
        pooled = [self.add(f"Global{pool}Pool", f"pool/{pool.lower()}", x) for pool in pools]
        if name == "catavgmax":
            pooled = [self.add("Concat", "pool/both", *pooled, axis=1)]
        if name == "avgmax":
            total = self.add("Add", "pool/sum", *pooled)
            pooled = [self.add("Mul", "pool/mean", total, self.constant("pool/half", 0.5))]
        return self.add("Flatten", "pooled", *pooled)

    def channels_last(self, x: str) -> str:
        return self.add("Transpose", f"{x}/nhwc", x, perm=[0, 2, 3, 1])

    def channels_first(self, x: str) -> str:
        return self.add("Transpose", f"{x}/nchw", x, perm=[0, 3, 1, 2])

    def model(
        self, inputs: dict[str, tuple], outputs: dict[str, tuple], metadata: dict[str, str]
    ) -> onnx.ModelProto:
        """Returns the whole as a checked model.

        Args:
          inputs, outputs: name -> (element type, shape); a text is a dimension of any size.
          metadata: texts to keep in the file.
        """
        ends = [
            [helper.make_tensor_value_info(n, _TYPES[np.dtype(t)], s) for n, (t, s) in side.items()]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "densenet_jax", *ends, [*self.constants.values()])
        model = helper.make_model(
            graph,
            producer_name="densenet_jax",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model
