"""How each framework names and lays out the tensors of our networks: one table for each.

A *convention* rewrites the path of one of our variables, `collection/module/.../leaf`, to the
tensor's name there.  Every conversion reads the table in this one direction, whichever way the
tensors go, so reading and writing agree.  Another source of weights is another table.
"""

import dataclasses
import re
from collections.abc import Callable

from flax import linen as nn

from densenet_jax.models.densenet import DenseNet
from densenet_jax.models.rdnet import RDNet

Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


@dataclasses.dataclass(frozen=True)
class Convention:
    """How a framework names and lays out the tensors of a network.

    Attributes:
      title: for messages.
      modules: the models it knows.
      rules: (pattern, replacement) pairs, applied in order to `collection/module/.../leaf`.
      conv_axes: transposes our convolution kernels [H, W, in, out] to theirs.
      dense_axes: transposes our dense kernels [in, out] to theirs.
      spellings: (pattern, replacement) pairs that bring other spellings of a name, such as those of
        older versions, to the one that the rules give.
      ignored: pattern of tensors that carry no weight.
      norm_epsilon: what the framework adds to variances, where that is not our default.
    """

    title: str
    modules: tuple[type[nn.Module], ...]
    rules: Rules
    conv_axes: tuple[int, ...] = (3, 2, 0, 1)
    dense_axes: tuple[int, ...] = (1, 0)
    spellings: Rules = ()
    ignored: str = r"$^"
    norm_epsilon: float | None = None

    def name(self, path: str) -> str:
        """Returns the framework's name of one of our variables."""
        return rewrite(self.rules, path)

    def axes(self, path: str, ndim: int) -> tuple[int, ...]:
        """Returns how to transpose one of our variables to the framework's layout."""
        if not path.endswith("/kernel"):
            return tuple(range(ndim))
        return self.conv_axes if ndim == 4 else self.dense_axes

    def spell(self, name: str) -> str | None:
        """Returns a tensor's name as the rules spell it; None: the tensor carries no weight."""
        name = rewrite(self.spellings, name)
        return None if re.search(self.ignored, name) else name


def rewrite(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _following(form: str) -> Callable[[re.Match], str]:
    """Returns a replacement that counts the first group one further: Keras's blocks begin at 2."""
    return lambda match: form.format(int(match[1]) + 1, *match.groups()[1:])


_TORCH_LEAVES: Rules = (
    (r"^params/(.*)/(scale|kernel)$", r"\1/weight"),
    (r"^params/(.*)$", r"\1"),
    (r"^batch_stats/(.*)/", r"\1/running_"),
)
_TORCH_SPELLINGS: Rules = (
    (r"^module\.", ""),  # DataParallel
    (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),  # before PyTorch 0.4
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
    spellings=_TORCH_SPELLINGS,
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
    spellings=(*_TORCH_SPELLINGS, (r"^stem\.stem\.", "stem.")),  # the authors' files
)

# Batch normalisation as Keras and MindSpore name it.
_GAMMA_BETA = (
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
        (r"^denseblock(\d+)/denselayer(\d+)/norm1/", _following("conv{}_block{}_0_bn/")),
        (r"^denseblock(\d+)/denselayer(\d+)/conv1/", _following("conv{}_block{}_1_conv/")),
        (r"^denseblock(\d+)/denselayer(\d+)/norm2/", _following("conv{}_block{}_1_bn/")),
        (r"^denseblock(\d+)/denselayer(\d+)/conv2/", _following("conv{}_block{}_2_conv/")),
        (r"^transition(\d+)/norm/", _following("pool{}_bn/")),
        (r"^transition(\d+)/conv/", _following("pool{}_conv/")),
        (r"^norm_final/", "bn/"),
        (r"^classifier/", "predictions/"),
    ),
    conv_axes=(0, 1, 2, 3),
    dense_axes=(0, 1),
    spellings=((r"^fc\d+/", "predictions/"),),  # the published files: fc1000
    norm_epsilon=1.001e-5,
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
    spellings=((r"^(?=denseblock|transition|conv0|norm[05])", "features."),),
    # What MindSpore stores of the optimizer and the loop.
    ignored=r"^(moments|momentum|accum|global_step|learning_rate|epoch_num|step_num|scale_sense)\b",
)

NATIVE = Convention(
    title="densenet_jax",
    modules=(DenseNet, RDNet),
    rules=(),
    conv_axes=(0, 1, 2, 3),
    dense_axes=(0, 1),
)

CONVENTIONS = {
    "torch": TORCH,
    "torch_cifar": TORCH_CIFAR,
    "torch_rdnet": TORCH_RDNET,
    "keras": KERAS,
    "mindcv": MINDCV,
    "densenet_jax": NATIVE,
}


def of_model(model: nn.Module) -> Convention:
    """Returns the convention in which PyTorch users know the model."""
    if isinstance(model, RDNet):
        return TORCH_RDNET
    return TORCH_CIFAR if model.stem == "cifar" else TORCH
