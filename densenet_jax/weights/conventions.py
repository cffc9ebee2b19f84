"""Conventions: the names and layouts that each framework gives to the tensors of our networks.

A `Convention` is a table of rules that rewrite the path of one of our variables,
`collection/module/.../leaf`, to the name of the tensor in the framework. Reading and writing both
apply the rules in this direction, so that they agree. To support another framework, add a table.
"""

import dataclasses
import re
from collections.abc import Callable

from flax import linen as nn

from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.rdnet import RDNet

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


@dataclasses.dataclass(frozen=True)
class Convention:
    """The names and layouts that a framework gives to the tensors of a network.

    Attributes:
      title: name of the framework, for messages.
      modules: classes of the models that the framework has.
      rules: (pattern, replacement) pairs, applied in order to `collection/module/.../leaf`.
      conv_axes: transposes our convolution kernels [H, W, in, out] to the framework's layout.
      dense_axes: transposes our dense kernels [in, out] to the framework's layout.
      root: the module that holds the body of the network, all but the classifier. Files may lack it
        or call it otherwise, so names are compared without it (see `body`).
      separators: characters after which the name of a tensor may begin, if a file puts the network
        into another module.
      spellings: (pattern, replacement) pairs that turn other spellings of a name, such as those of
        older versions and of wrappers, into the name that `rules` give.
      ignored: pattern for the names of tensors that are not weights.
      copies: pattern for what an optimizer puts before the name of a weight to name its own state
        of this weight.
      norm_epsilon: the number that the framework adds to variances; None: the default of our model.
      stem: the stem that the framework's networks have and that their names do not tell; None: any
        stem with these names.
    """

    title: str
    modules: tuple[type[nn.Module], ...]
    rules: Rules
    conv_axes: tuple[int, ...] = (3, 2, 0, 1)
    dense_axes: tuple[int, ...] = (1, 0)
    root: str = ""
    separators: str = "."
    spellings: Rules = ()
    ignored: str = r"$^"
    copies: str = r"$^"
    norm_epsilon: float | None = None
    stem: str | None = None

    def name(self, path: str) -> str:
        """Returns the framework's name for the variable at `path`."""
        return rewrite(self.rules, path)

    def axes(self, path: str, ndim: int) -> tuple[int, ...]:
        """Returns the axes that transpose the variable at `path` to the framework's layout."""
        if not path.endswith("/kernel"):
            return tuple(range(ndim))
        return self.conv_axes if ndim == 4 else self.dense_axes

    def spell(self, name: str) -> str | None:
        """Returns the name of a tensor as `rules` spell it; None: the tensor is not a weight."""
        name = rewrite(self.spellings, name)
        return None if re.search(self.ignored, name) else name


def rewrite(rules: Rules, text: str) -> str:
    """Returns the text after all rules were applied in order."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _increment_first(form: str) -> Callable[[re.Match[str]], str]:
    """Returns a replacement that formats the groups of a match, with the first one increased by 1.

    Keras counts the convolution of the stem as 1, so its dense blocks begin at 2.
    """
    return lambda match: form.format(int(match[1]) + 1, *match.groups()[1:])


_TORCH_LEAVES: Rules = (
    (r"^params/(.*)/(scale|kernel)$", r"\1/weight"),
    (r"^params/(.*)$", r"\1"),
    (r"^batch_stats/(.*)/", r"\1/running_"),
)
_TORCH_SPELLINGS: Rules = (
    # Modules that wrap others: data parallelism, torch.compile, FSDP, activation checkpointing.
    (r"(^|\.)(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+", r"\1"),
    (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),  # before PyTorch 0.4
)
_TORCH_DENSENET_SPELLINGS: Rules = (
    *_TORCH_SPELLINGS,
    (r"(denselayer\d+\.)layers\.", r"\1"),  # MONAI
    # MMPretrain
    (r"(^|\.)stem\.0\.", r"\1conv0."),
    (r"(^|\.)stem\.1\.", r"\1norm0."),
    (
        r"(^|\.)stages\.(\d+)\.block\.(\d+)\.",
        lambda m: f"{m[1]}denseblock{int(m[2]) + 1}.denselayer{int(m[3]) + 1}.",
    ),
    (r"(^|\.)transitions\.\d+\.0\.", r"\1norm5."),
    (r"(^|\.)transitions\.(\d+)\.", lambda m: f"{m[1]}transition{int(m[2]) + 1}."),
)

TORCH = Convention(
    title="PyTorch (timm, torchvision)",
    modules=(DenseNet,),
    rules=(
        *_TORCH_LEAVES,
        (r"^norm_final/", "norm5/"),
        (r"^(?!classifier/)", "features/"),
        (r"/", "."),
    ),
    root="features.",
    spellings=_TORCH_DENSENET_SPELLINGS,
    ignored=r"num_batches_tracked$",
)

TORCH_CIFAR = dataclasses.replace(
    TORCH,
    title="PyTorch (efficient_densenet_pytorch)",
    rules=tuple(rule for rule in TORCH.rules if rule[1] != "norm5/"),
)

TORCH_RDNET = Convention(
    title="PyTorch (timm's RDNet)",
    modules=(RDNet,),
    rules=(
        *_TORCH_LEAVES,
        (r"^stem_conv/", "stem/0/"),
        (r"^stem_norm/", "stem/1/"),
        (r"^head_norm/", "head/norm/"),
        (r"^classifier/", "head/fc/"),
        (r"^stage0/layer(\d+)/", r"dense_stages/0/0/dense_block\1/"),
        (r"^stage(\d+)/layer(\d+)/", r"dense_stages/\1/2/dense_block\2/"),
        (r"^stage(\d+)/norm/", r"dense_stages/\1/0/"),
        (r"^stage(\d+)/conv/", r"dense_stages/\1/1/"),
        (r"(/dense_block\d+)/depthwise/", r"\1/layers/layers/0/"),
        (r"(/dense_block\d+)/norm/", r"\1/layers/layers/1/"),
        (r"(/dense_block\d+)/expand/", r"\1/layers/layers/2/"),
        (r"(/dense_block\d+)/project/", r"\1/layers/layers/4/"),
        (r"(/dense_block\d+)/gate/", r"\1/layers/layers/5/fc/"),
        (r"/", "."),
    ),
    # The files of RDNet's authors have another module in the stem.
    spellings=(*_TORCH_SPELLINGS, (r"(^|\.)stem\.stem\.", r"\1stem.")),
)

# Names of batch normalisation in Keras and MindSpore.
_GAMMA_BETA: Rules = (
    (r"^params/(.*norm[^/]*)/scale$", r"\1/gamma"),
    (r"^params/(.*norm[^/]*)/bias$", r"\1/beta"),
    (r"^batch_stats/(.*)/mean$", r"\1/moving_mean"),
    (r"^batch_stats/(.*)/var$", r"\1/moving_variance"),
    (r"^params/", ""),
)

KERAS = Convention(
    title="Keras applications",
    modules=(DenseNet,),
    rules=(
        *_GAMMA_BETA,
        (r"^conv0/", "conv1_conv/"),
        (r"^norm0/", "conv1_bn/"),
        (r"^denseblock(\d+)/denselayer(\d+)/norm1/", _increment_first("conv{}_block{}_0_bn/")),
        (r"^denseblock(\d+)/denselayer(\d+)/conv1/", _increment_first("conv{}_block{}_1_conv/")),
        (r"^denseblock(\d+)/denselayer(\d+)/norm2/", _increment_first("conv{}_block{}_1_bn/")),
        (r"^denseblock(\d+)/denselayer(\d+)/conv2/", _increment_first("conv{}_block{}_2_conv/")),
        (r"^transition(\d+)/norm/", _increment_first("pool{}_bn/")),
        (r"^transition(\d+)/conv/", _increment_first("pool{}_conv/")),
        (r"^norm_final/", "bn/"),
        (r"^classifier/", "predictions/"),
    ),
    conv_axes=(0, 1, 2, 3),
    dense_axes=(0, 1),
    separators="/_",
    spellings=((r"(^|[/_])fc\d+/", r"\1predictions/"),),  # fc1000 in the published files
    norm_epsilon=1.001e-5,
)

KERAS_HUB = dataclasses.replace(
    KERAS,
    title="KerasHub",
    rules=(
        *_GAMMA_BETA,
        (r"^conv0/", "conv1_conv/"),
        (r"^norm0/", "conv1_bn/"),
        (r"^denseblock(\d+)/denselayer(\d+)/norm(\d)/", r"stack\1_block\2_\3_bn/"),
        (r"^denseblock(\d+)/denselayer(\d+)/conv(\d)/", r"stack\1_block\2_\3_conv/"),
        (r"^transition(\d+)/norm/", r"transition\1_bn/"),
        (r"^transition(\d+)/conv/", r"transition\1_conv/"),
        (r"^norm_final/", "bn/"),
        (r"^classifier/", "predictions/"),
    ),
    stem="imagenet_same",
)

MINDCV = Convention(
    title="MindCV",
    modules=(DenseNet,),
    rules=(
        *_GAMMA_BETA,
        (r"/kernel$", "/weight"),
        (r"/denselayer(\d+)/", lambda match: f"/cell_list/{int(match[1]) - 1}/"),
        (r"^(transition\d+)/", r"\1/features/"),
        (r"^norm_final/", "norm5/"),
        (r"^(?!classifier/)", "features/"),
        (r"/", "."),
    ),
    root="features.",
    # What MindSpore stores along with the weights: of loops and loss scalers, and of optimizers.
    ignored=(
        r"^(global_step|learning_rate|lr|epoch_num|step_num|scale_sense|beta[12]_power|"
        r"(current|last_overflow)_iterator_step|batch_num|epoch|step|loss_scale|growth_tracker)$"
        r"|(^|\.)fake_"
    ),
    copies=(
        r"moments?\d?|momentum|adam_[mv]|stat|mean_square|mean_grad|lamb_[mv]|linear|accum|"
        r"accum_update|accumulation|prev|step_size|ax_?|eta_?\w*|mu_?\w*|ema\d?|exp_inf|inner_momen"
    ),
)

NATIVE = Convention(
    title="densenet_jax",
    modules=(DenseNet, RDNet),
    rules=(),
    conv_axes=(0, 1, 2, 3),
    dense_axes=(0, 1),
    separators="/",
    spellings=((r"(^|[./])(params|batch_stats)\..*", lambda m: m[0].replace(".", "/")),),
)

# The state of an `nnx.Module`, whose parameters and statistics are in one tree.
NNX = dataclasses.replace(
    NATIVE,
    title="densenet_jax.nnx",
    rules=((r"^(params|batch_stats)/", ""),),
    spellings=((r"\.", "/"), (r"/(value|raw_value)$", "")),
    ignored=r"(^|/)(params|batch_stats)/",  # the other convention
)

CONVENTIONS = {
    "torch": TORCH,
    "torch_cifar": TORCH_CIFAR,
    "torch_rdnet": TORCH_RDNET,
    "keras": KERAS,
    "keras_hub": KERAS_HUB,
    "mindcv": MINDCV,
    "densenet_jax": NATIVE,
    "nnx": NNX,
}


def of_model(model: nn.Module) -> Convention:
    """Returns the convention of the PyTorch implementation of a model."""
    if isinstance(model, RDNet):
        return TORCH_RDNET
    return TORCH_CIFAR if model.stem == "cifar" else TORCH
