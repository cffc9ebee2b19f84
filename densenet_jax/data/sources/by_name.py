"""A data set's name -> random access to its examples."""

from collections.abc import Sequence

from densenet_jax.data.sources import builtin, folders, hugging_face, subsets, tfds
from densenet_jax.data.sources.source import Arrays, DataError, Source

__all__ = ["Arrays", "DataError", "Source", "load"]


def load(
    name: str,
    split: str,
    data_dir: str = "",
    holdout: float = 0.1,
    classes: Sequence[str] = (),
    per_class: int = 0,
) -> Source:
    """Returns one split of a data set.

    Args:
      name: `digits`; `synthetic`, `synthetic:SIZE:CLASSES`; `folder` for the images of
        `data_dir/split/class/*` or `data_dir/class/*`; `hf:OWNER/NAME` of the Hugging Face hub;
        else a TFDS data set with `image` and `label`, `name`, `name/config` or `name:version`.
      split: the split's name; slices (`train[:90%]`) work for TFDS and Hugging Face.
      data_dir: the folder of the images, or TFDS's data directory ("" for its default).
      holdout: the share of a folder without splits that becomes its validation split.
      classes, per_class: of a part of it, see `subsets.choose`.

    Raises:
      DataError: there is no such data set, split or class, or it is not prepared.
    """
    return subsets.choose(_whole(name, split, data_dir, holdout), classes, per_class)


def _whole(name: str, split: str, data_dir: str, holdout: float) -> Source:
    if name == "digits":
        return builtin.digits(split)
    if name.split(":")[0] == "synthetic":
        return builtin.synthetic(name, split)
    if name == "folder":
        return folders.image_folder(data_dir, split, holdout)
    if name.startswith("hf:"):
        return hugging_face.hub_dataset(name, split, data_dir)
    return tfds.tfds_source(name, split, data_dir)
