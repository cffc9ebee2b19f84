"""The widths of a network, which modules, counts, limits, exports and summaries read here."""

from typing import NamedTuple


class BlockPlan(NamedTuple):
    """The widths of one dense block.

    Attributes:
      in_features: feature maps that the block reads.
      depth: number of its layers.
      growth_rate: feature maps that each layer adds.
      bottleneck: width of the layers' 1x1 convolutions; 0: the layers have none.
      kept: feature maps after the transition that follows; None: no transition follows.
    """

    in_features: int
    depth: int
    growth_rate: int
    bottleneck: int
    kept: int | None

    @property
    def widths(self) -> list[int]:
        """Feature maps that each layer reads, in order."""
        return [self.in_features + i * self.growth_rate for i in range(self.depth)]

    @property
    def out_features(self) -> int:
        """Feature maps at the end of the block."""
        return self.in_features + self.depth * self.growth_rate


def per_block(value: int | tuple[int, ...], blocks: int, name: str) -> tuple[int, ...]:
    """Returns a field that has one number for all blocks, or one for each, as one for each.

    Raises:
      ValueError: another number of values; `name` is the field, for the message.
    """
    values = (value,) * blocks if isinstance(value, int) else tuple(value)
    if len(values) != blocks:
        raise ValueError(
            f"{name} has {len(values)} numbers for {blocks} blocks; give one number for all "
            "blocks, or one for each."
        )
    return values
