"""Finds a data set by its name and gives random access to the examples of a split."""

import dataclasses
from collections.abc import Sequence

from densenet_jax.data.sources import builtin, folders, hugging_face, subsets, tables, tfds
from densenet_jax.data.sources.source import Arrays, DataError, Source
from densenet_jax.data.sources.splits import Division
from densenet_jax.data.sources.tables import Columns

__all__ = ["Arrays", "Columns", "DataError", "Source", "load"]


def load(
    name: str,
    split: str,
    data_dir: str = "",
    holdout: float = 0.1,
    classes: Sequence[str] = (),
    per_class: int = 0,
    *,
    task: str = "classification",
    columns: Columns = tables.DEFAULT,
    group: str = "",
    folds: int = 0,
    fold: int = 0,
) -> Source:
    """Returns one split of a data set.

    Args:
      name: one of
        - `digits`, scikit-learn's digits;
        - `synthetic` or `synthetic:SIZE:CLASSES`, noise for benchmarks;
        - `folder`, images in `data_dir/SPLIT/CLASS/*` or `data_dir/CLASS/*`;
        - `table`, images that the table `data_dir` (.csv, .tsv, .parquet) lists with their labels;
        - `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG`, a data set of the Hugging Face hub;
        - `NAME`, `NAME/CONFIG` or `NAME:VERSION`, a data set of TFDS.
      split: name of the split; for TFDS and Hugging Face also a slice such as `train[:90%]`.
      data_dir: the folder of images, or the table, or TFDS's data directory ("" for its default),
        or for Hugging Face a folder in the repository.
      holdout: share of a folder or table without splits that is its validation split, between 0
        and 1.
      classes: names of the classes, or labels of several, to keep, which become labels 0, 1, ...
        in this order; (): all.
      per_class: number of examples of each class to keep, the first ones of the split; 0: all.
      task: what the labels are for: "classification", "multilabel" or "regression".
      columns: the columns of a table; for TFDS and Hugging Face the names of the label features.
      group: for a folder, the regular expression that finds the group of a path, see
        `folders.image_folder`.
      folds: number of folds of a folder or table without splits, for cross-validation; 0: holdout.
      fold: number of the fold that is the validation split.

    Raises:
      DataError: there is no such data set, split or class, the data set is not prepared, it cannot
        be read, its labels suit another task, or an option is not for it.
    """
    _check_options(name, columns, group, folds)
    if name == "digits":
        source = builtin.digits(split)
    elif name.split(":")[0] == "synthetic":
        source = builtin.synthetic(name, split)
    elif name == "folder":
        source = folders.image_folder(data_dir, split, holdout, group=group, folds=folds, fold=fold)
    elif name == "table":
        division = Division(holdout, folds, fold)
        source = tables.table_source(data_dir, split, columns, division, task)
    elif name.startswith("hf:"):
        source = hugging_face.hub_dataset(name, split, data_dir, task, columns)
    else:
        source = tfds.tfds_source(name, split, data_dir, task, columns)
    if source.task != task:
        raise DataError(
            f"{source.name} has labels for the task {source.task}, but config.task is {task}; set "
            f"--config.task={source.task}, or choose another data set."
        )
    return subsets.choose(source, classes, per_class)


def _check_options(name: str, columns: Columns, group: str, folds: int) -> None:
    """Raises DataError for an option that the data set would ignore."""
    if folds and name not in ("folder", "table"):
        raise DataError(
            f"data.folds is for folders and tables, but data.name is {name!r}; remove it, or "
            "choose slices such as train[:80%] with data.train_split and data.eval_split."
        )
    if group and name != "folder":
        raise DataError(
            f"data.group is a pattern on the paths of a folder, but data.name is {name!r}; remove "
            "it (the option of a table is data.group_column)."
        )
    if name == "table":
        return
    options = [field.name for field in dataclasses.fields(Columns)]
    if name not in ("folder", "digits") and not name.startswith("synthetic"):
        options = [o for o in options if o not in ("label_columns", "uncertain")]
    for option in options:
        if (value := getattr(columns, option)) != getattr(tables.DEFAULT, option):
            raise DataError(
                f"data.{option}={value!r} is for tables, but data.name is {name!r}; remove it, or "
                "set --config.data.name=table."
            )
