"""Finds a data set by its name and gives random access to the examples of a split."""

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
      name: one of
        - `digits`, scikit-learn's digits;
        - `synthetic` or `synthetic:SIZE:CLASSES`, noise for benchmarks;
        - `folder`, images in `data_dir/SPLIT/CLASS/*` or `data_dir/CLASS/*`;
        - `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG`, a data set of the Hugging Face hub;
        - `NAME`, `NAME/CONFIG` or `NAME:VERSION`, a data set of TFDS with the features `image` and
          `label`.
      split: name of the split; for TFDS and Hugging Face also a slice such as `train[:90%]`.
      data_dir: the folder of images, or TFDS's data directory ("" for its default), or for Hugging
        Face a folder in the repository.
      holdout: share of a folder without splits that is its validation split, between 0 and 1.
      classes: names of the classes to keep, which become labels 0, 1, ... in this order; (): all.
      per_class: number of examples of each class to keep, the first ones of the split; 0: all.

    Raises:
      DataError: there is no such data set, split or class, the data set is not prepared, or it
        cannot be read.
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
