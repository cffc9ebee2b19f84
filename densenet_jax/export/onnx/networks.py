"""DenseNet and RDNet in evaluation mode as graphs of ONNX operators.

The graphs are written by hand rather than traced.  Tracing would turn a dense block's buffer, which
XLA updates in place, into hundreds of scatters, and add a transpose to each channels-last
convolution (figures in docs/export.md).  In the graphs here, a norm after a convolution is folded
into its kernel, a norm before one is a node that runtimes fuse with its activation, transitions
pool before they convolve, and layers are concatenated.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import linen as nn

from densenet_jax.export.onnx.graph import Graph
from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.rdnet import PATCH, RDNet
from densenet_jax.models.stem import find_stem, norm_act_max_blur_pool, same_convolution


def build(graph: Graph, model: nn.Module, variables: Any, x: str) -> str:
    """Adds a network; returns the name of its logits, or pooled features if it has no classifier.

    Args:
      graph: the graph to add to.
      model: a `DenseNet` or an `RDNet`.
      variables: {"params": ..., "batch_stats": ...} of the model.
      x: name of the normalised images [B, C, H, W].

    Raises:
      TypeError: the model is of another class.
    """
    if type(model) is DenseNet:
        pooled = densenet(graph, model, variables, x)
    elif type(model) is RDNet:
        pooled = rdnet(graph, model, variables, x)
    else:
        raise TypeError(
            f"{type(model).__name__} cannot be exported to ONNX; DenseNet and RDNet can."
        )
    if not model.num_classes:
        return pooled
    return graph.dense("classifier", pooled, **variables["params"]["classifier"])


def densenet(graph: Graph, model: DenseNet, variables: Any, x: str) -> str:
    """Adds a DenseNet up to its pooled features [B, C]; see `build` for the arguments."""
    params, statistics = variables["params"], variables["batch_stats"]
    layers = _Layers(graph, model.norm_epsilon, model.activation)
    x = _stem(layers, model, params, statistics, x)
    for i, plan in enumerate(model.plan(), start=1):
        block = f"denseblock{i}"
        for layer in (f"denselayer{j}" for j in range(1, plan.depth + 1)):
            own = params[block][layer], statistics[block][layer]
            new = layers.dense_layer(f"{block}/{layer}", x, *own)
            x = graph.add("Concat", f"{block}/{layer}/features", x, new, axis=1)
        if plan.kept is not None:
            name = f"transition{i}"
            norm = params[name]["norm"], statistics[name]["norm"]
            y = layers.norm_act(f"{name}/norm", x, *norm)
            y = graph.pool("AveragePool", f"{name}/pool", y, 2, 2)
            x = graph.conv(f"{name}/conv", y, params[name]["conv"]["kernel"])
    x = layers.norm_act("norm_final", x, params["norm_final"], statistics["norm_final"])
    return graph.global_pool(x, model.global_pool)


class _Layers:
    """Builds the norms, convolutions and dense layers of a DenseNet.

    In all methods, params and statistics are those of the module of that name: of a norm,
    {"scale": [C], "bias": [C]} and {"mean": [C], "var": [C]}.
    """

    def __init__(self, graph: Graph, epsilon: float, activation: str):
        self.graph, self.epsilon, self.activation = graph, epsilon, activation

    def norm_act(self, name: str, x: str, params: dict, statistics: dict) -> str:
        """Adds a norm and the activation."""
        return self.graph.activation(
            self.graph.batch_norm(name, x, params, statistics, self.epsilon), self.activation
        )

    def conv_norm_act(
        self,
        name: str,
        x: str,
        kernel: Any,
        params: dict,
        statistics: dict,
        stride: int = 1,
        same: bool = False,
    ) -> str:
        """Adds a convolution with the norm that follows it folded in, and the activation.

        Folding computes in float64. `same`: the padding is TensorFlow's.
        """
        scale, bias, mean, var = (
            np.asarray(v, np.float64)
            for v in (params["scale"], params["bias"], statistics["mean"], statistics["var"])
        )
        gain = scale / np.sqrt(var + self.epsilon)
        kernel = np.asarray(kernel, np.float64) * gain
        y = self.graph.conv(name, x, kernel, bias - mean * gain, stride=stride, same=same)
        return self.graph.activation(y, self.activation)

    def dense_layer(self, name: str, x: str, params: dict, statistics: dict) -> str:
        """Adds a dense layer [B, C, H, W] -> [B, growth rate, H, W], with or without bottleneck."""
        y = self.norm_act(f"{name}/norm1", x, params["norm1"], statistics["norm1"])
        kernel = params["conv1"]["kernel"]
        if "conv2" not in params:
            return self.graph.conv(f"{name}/conv1", y, kernel)
        norm2 = params["norm2"], statistics["norm2"]
        y = self.conv_norm_act(f"{name}/conv1", y, kernel, *norm2)
        return self.graph.conv(f"{name}/conv2", y, params["conv2"]["kernel"])


def _stem(layers: _Layers, model: DenseNet, params: dict, statistics: dict, x: str) -> str:
    """Adds a DenseNet's layers before the first block."""
    graph, stem = layers.graph, find_stem(model.stem)
    same = stem.convolve is same_convolution
    for i, (_, stride, _) in enumerate(stem.convolutions):
        kernel = params[f"conv{i}"]["kernel"]
        if not stem.norm:
            x = graph.conv(f"conv{i}", x, kernel, stride=stride)
            continue
        norm = params[f"norm{i}"], statistics[f"norm{i}"]
        x = layers.conv_norm_act(f"conv{i}", x, kernel, *norm, stride, same=same)
    if stem.pool is None:
        return x
    if same:
        return graph.pool("MaxPool", "stem/pool", x, 3, 2, None)
    if stem.pool is not norm_act_max_blur_pool:
        return graph.pool("MaxPool", "stem/pool", x, 3, 2, 1)
    x = graph.pool("MaxPool", "stem/pool", x, 3, 1, 1)
    around = graph.constant("stem/around", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    x = graph.add("Pad", "stem/pad", x, around, mode="reflect")
    binomial = np.outer([1, 2, 1], [1, 2, 1]) / 16
    kernel = np.broadcast_to(binomial[..., None, None], (3, 3, 1, model.stem_features))
    return graph.conv("stem/blur", x, kernel, stride=2, pad=0, groups=model.stem_features)


def rdnet(graph: Graph, model: RDNet, variables: Any, x: str) -> str:
    """Adds an RDNet up to its pooled, normalised features [B, C]; see `build` for the arguments."""
    params, epsilon = variables["params"], model.norm_epsilon

    def normed(name: str, x: str, own: dict) -> str:
        """Adds a layer norm of x [B, C, H, W]; its output is [B, H, W, C]."""
        return graph.layer_norm(name, graph.channels_last(x), own, epsilon)

    x = graph.conv("stem_conv", x, **params["stem_conv"], stride=PATCH, pad=0)
    x = graph.channels_first(normed("stem_norm", x, params["stem_norm"]))
    for i, depth in enumerate(model.block_sizes):
        stage, own = f"stage{i}", params[f"stage{i}"]
        if "conv" in own:
            x = graph.channels_first(normed(f"{stage}/norm", x, own["norm"]))
            size = own["conv"]["kernel"].shape[0]
            x = graph.conv(f"{stage}/conv", x, **own["conv"], stride=size, pad=0)
        for j in range(depth):
            layer, own_layer = f"{stage}/layer{j}", own[f"layer{j}"]
            new = _rdnet_layer(graph, layer, x, own_layer, normed)
            x = graph.add("Concat", f"{layer}/features", x, new, axis=1)
    x = graph.global_pool(x, "avg")
    return graph.layer_norm("head_norm", x, params["head_norm"], epsilon)


def _rdnet_layer(
    graph: Graph, name: str, x: str, params: dict, normed: Callable[[str, str, dict], str]
) -> str:
    """Adds a layer [B, C, H, W] -> [B, growth rate, H, W]; channels are last from its norm on.

    Args:
      graph: the graph to add to.
      name: of the layer.
      x: its input.
      params: {"depthwise", "norm", "expand", "project", "gamma"} and, in gated layers, "gate".
      normed: adds a layer norm, see `rdnet`.
    """
    depthwise = params["depthwise"]
    groups = depthwise["kernel"].shape[3]
    y = graph.conv(f"{name}/depthwise", x, **depthwise, groups=groups)
    y = normed(f"{name}/norm", y, params["norm"])
    y = graph.gelu(f"{name}/gelu", _pointwise(graph, f"{name}/expand", y, params["expand"]))
    gamma = np.asarray(params["gamma"])
    if "gate" not in params:  # fold the layer's scale into the projection
        project = {key: np.asarray(value) * gamma for key, value in params["project"].items()}
        return graph.channels_first(_pointwise(graph, f"{name}/project", y, project))
    y = _pointwise(graph, f"{name}/project", y, params["project"])
    mean = graph.mean(f"{name}/mean", y, [1, 2])
    gate = _pointwise(graph, f"{name}/gate", mean, params["gate"])
    gate = graph.add("HardSigmoid", f"{name}/gate/sigmoid", gate, alpha=1 / 6, beta=0.5)
    gate = graph.add("Mul", f"{name}/scale", gate, graph.constant(f"{name}/gamma", gamma))
    return graph.channels_first(graph.add("Mul", f"{name}/gated", y, gate))


def _pointwise(graph: Graph, name: str, x: str, params: dict) -> str:
    """Adds a 1x1 convolution of x [B, H, W, in] with a kernel [1, 1, in, out]."""
    return graph.dense(name, x, np.asarray(params["kernel"])[0, 0], params["bias"])
