"""Finds the body of a network, all but the classifier, among the tensors of a state dict.

Checkpoints put the network into other modules (`model.`, `module.densenet121.`, `encoder.`), and
call the module that holds the body differently. So a tensor belongs to a variable if its name ends
in the variable's name, and what stands before is its prefix. The one prefix under which the body
is complete is the network.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from densenet_jax.weights.conventions import Convention
from densenet_jax.weights.readers.bounded_file import WeightsError, shown

HEAD = "params/classifier/"
TOP = "the top level"  # the module that holds a network without a prefix
# A component of the prefix that means a moving average of the weights; it is what the trainer
# evaluated, so it is preferred to the raw weights beside it.
_AVERAGE = re.compile(r"(^|[._/])(ema|averaged|swa)(?=[._/])|_ema[._/]")
# Tensors of other architectures -> what they are called.
_OTHERS = (
    (r"(^|\.)layer[1-4]\.\d+\.(conv|bn)\d\.", "a ResNet"),
    (r"(^|\.)stages\.\d+\.blocks\.\d+\.(conv_dw|dwconv)\.", "a ConvNeXt"),
    (r"(^|\.)layers\.\d+\.blocks\.\d+\.attn\.", "a Swin Transformer"),
    (r"(^|\.)(cls_token$|blocks\.\d+\.attn\.|encoder\.layers?\.\S*(self_)?attention\.)", "a ViT"),
    (r"(^|\.)blocks\.\d+\.\d+\.(conv_pw|conv_dw|se)\.|(^|\.)_blocks\.\d+\.", "an EfficientNet"),
    (r"(^|\.)features\.\d+\.(conv|block)\.\d+\.", "a MobileNet or EfficientNet"),
    (r"(^|\.)(Mixed_\d|Conv2d_1a)", "an Inception network"),
    (r"(^|\.)features\.\d+\.(weight|bias)$", "a VGG or AlexNet"),
)


class Body(NamedTuple):
    """Tensors under one prefix, by the variables that they belong to.

    Attributes:
      convention: the convention of their names.
      prefix: what stands before the names of the variables, with its last separator.
      names: {name of a variable in the convention, without the root: name of its tensor}.
      size: number of variables of the body in the model.
    """

    convention: Convention
    prefix: str
    names: dict[str, str]
    size: int

    @property
    def complete(self) -> bool:
        return len(self.names) == self.size

    def module(self) -> str:
        """Returns the prefix as a user says it, with the root and without the last separator."""
        return self.prefix.removesuffix(self.convention.root).rstrip("._/") or TOP


def short(convention: Convention, path: str) -> str:
    """Returns a variable's name in a convention, without the root."""
    return convention.name(path).removeprefix(convention.root)


def spelt(convention: Convention, names: Collection[str]) -> dict[str, str]:
    """Returns {name of a tensor as the convention spells it: its name}, weights alone.

    Raises:
      WeightsError: two tensors are spelt alike.
    """
    result: dict[str, str] = {}
    copy = re.compile(rf"(?:{convention.copies})\.(.*)")
    for name in sorted(names):  # a set has another order in every process
        if (found := copy.fullmatch(name)) and found[1] in names:
            continue
        text = convention.spell(name)
        if text is None:
            continue
        if text in result:
            raise WeightsError(
                f"The tensors {shown(result[text])} and {shown(name)} have the same meaning, so "
                "one of them would be lost; keep the right one alone."
            )
        result[text] = name
    return result


def bodies(convention: Convention, paths: Iterable[str], names: Mapping[str, str]) -> list[Body]:
    """Returns a body for each prefix under which a tensor of the body is found.

    Args:
      convention: the convention of the names.
      paths: of the model's variables.
      names: {spelt name: name of a tensor}, see `spelt`.
    """
    ours = {short(convention, path) for path in paths if not path.startswith(HEAD)}
    found: dict[str, dict[str, str]] = {}
    for text, name in names.items():
        begin = _longest(text, ours, convention.separators)
        if begin is None:
            continue
        found.setdefault(text[:begin], {})[text[begin:]] = name
    return [Body(convention, prefix, members, len(ours)) for prefix, members in found.items()]


def _longest(text: str, known: Collection[str], separators: str) -> int | None:
    """Returns where the longest suffix of `text` that is known begins; None: none is known."""
    if text in known:
        return 0
    for i, character in enumerate(text):
        if character in separators and text[i + 1 :] in known:
            return i + 1
    return None


def choose(candidates: list[Body]) -> Body | None:
    """Returns the network among the bodies of all prefixes and conventions; None: there is none.

    Of a network and its moving average, the average is returned, as the trainer evaluated it.
    Without a complete body, the one with the most tensors is returned, for the error message.

    Raises:
      WeightsError: there are several networks, and not one of them is the average of the other.
    """
    whole = [body for body in candidates if body.complete]
    if len(whole) > 1:
        averages = [body for body in whole if _AVERAGE.search(body.prefix)]
        if len(averages) != 1:
            which = sorted(shown(body.module()) for body in whole)
            raise WeightsError(
                f"The weights hold {len(whole)} networks, {' and '.join(which[:4])}; say which "
                f"one is meant with prefix= (--prefix=NAME on the command line), as in "
                f"prefix={which[0]}."
            )
        whole = averages
    return max(whole or candidates, key=lambda body: len(body.names), default=None)


def within(module: str, names: Iterable[str]) -> set[str]:
    """Returns the names of the tensors in a module."""
    return {name for name in names if re.match(re.escape(module) + r"[._/]", name)}


def guess(names: Iterable[str]) -> str | None:
    """Returns the architecture that the names of tensors tell, such as "a ResNet"; None: unknown.

    At least three names must agree.
    """
    counts = {title: 0 for _, title in _OTHERS}
    for name in names:
        for pattern, title in _OTHERS:
            counts[title] += bool(re.search(pattern, name))
    best = max(counts, key=lambda title: counts[title])
    return best if counts[best] >= 3 else None
