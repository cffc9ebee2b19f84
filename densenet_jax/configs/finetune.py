"""Fine-tunes published weights, a weight file or a run of this project on another data set.

  python main.py --config=configs/finetune.py:densenet121.ra_in1k,cifar10 --workdir=runs/tuned

The argument names the weights and the data set.

  :densenet161.tv_in1k,oxford_flowers102    published weights, see `python main.py models`
  :hf-hub:owner/name,food101                a repository on the hub
  :densenet121-a639ec97.pth,cifar10         a file, of any format that docs/models.md lists
  :runs/cifar10,digits                      another run
  :densenet121.ra_in1k,folder               images in --config.data.data_dir=DIR
  :densenet121.ra_in1k,table                labels in --config.data.data_dir=FILE.csv

If the name of a file does not contain the network, pass --config.model.name=densenet121.  The run
prints which variables were loaded and which are newly initialised: the head, if the number of
classes differs.

Momentum 0.9 and learning rate 0.001 are MindCV's, here with batch 64 and a cosine for 10 epochs.
Usual changes:

  --config.optimizer.layer_decay=0.7                   lower rates towards the stem
  --config.optimizer.frozen='("stem","block1")'        parts that do not train
  --config.optimizer.frozen='("stem","block1","block2","block3","block4","norm")'   a linear probe
  --config.model.freeze_statistics=True                keeps statistics: few images, small batches
  --config.data.image_size=96                          default: the weights' own, 224

Images are resized to the size of the weights, however small they are, because the features were
learned at that size.  In training a random region of at least half of the area is resized;
--config.data.random_crop=False uses whole images, distorted to squares.
"""

import json
import pathlib

from ml_collections import ConfigDict

from densenet_jax.configs import default
from densenet_jax.weights.infer_variant import network_of

# Data sets whose evaluation split is not called validation.
EVAL_SPLITS = dict.fromkeys(
    ("cifar10", "cifar100", "digits", "stanford_dogs", "oxford_iiit_pet", "mnist"), "test"
)


def get_config(arguments: str = "densenet121.ra_in1k,cifar10") -> ConfigDict:
    weights, comma, data = arguments.rpartition(",")
    if not comma or not weights or not data:
        raise ValueError(
            "configs/finetune.py takes weights and a data set, finetune.py:densenet121.ra_in1k,"
            f"cifar10; not {arguments!r}."
        )
    config = default.get_config()
    config.init_from = weights
    set_network(config, weights)
    config.batch_size = 64
    config.total_epochs = 10.0
    config.data.name = data
    config.data.eval_split = EVAL_SPLITS.get(data, "validation")
    config.data.crop_scale = (0.5, 1.0)
    config.data.channels = 1 if data in ("digits", "mnist") else 3
    config.augment.flip = data not in ("digits", "mnist")
    config.optimizer.update(
        name="sgd", learning_rate=1e-3, momentum=0.9, nesterov=False, schedule="cosine"
    )
    return config


def set_network(config: ConfigDict, weights: str) -> None:
    """Sets the network that `weights` belong to; "" if they do not name it: the user sets it."""
    stored = pathlib.Path(weights) / "config.json"
    run = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    if isinstance(run.get("model"), dict) and "init_from" in run:  # a run of this project
        fields = {k: v for k, v in run["model"].items() if k in config.model}
        fields.update(num_classes=None, freeze_statistics=None)
        config.model.update({k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        return
    config.model.name = network_of(weights) or ""
