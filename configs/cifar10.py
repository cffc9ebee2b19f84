"""CIFAR-10 with the paper's recipe: 300 epochs, batch 64, by default DenseNet-BC (L=100, k=12).

  python main.py --config=configs/cifar10.py --workdir=runs/cifar10

Expect 95.5 % top-1 (the paper: 4.51 % error; on pixels that were never JPEG).  TFDS's `cifar10`
must be prepared as ArrayRecord; the command says how if it is not.

The argument names any other network of the family, BC or plain, by depth and growth rate:
  --config=configs/cifar10.py:densenet_bc_190_40      the paper's largest: 96.5 %
  --config=configs/cifar10.py:densenet_40_12          plain, 94.8 %
  --config=configs/cifar10.py:densenet_bc_22_12       learns within minutes on a laptop
CIFAR-100: --config.data.name=cifar100
"""

import re

from ml_collections import ConfigDict

from densenet_jax.configs import default


def get_config(network: str = "densenet_bc_100_12") -> ConfigDict:
    config = default.get_config()
    match = re.fullmatch(r"densenet_(bc_)?(\d{1,4})_(\d{1,4})", network)
    if match is None:
        raise ValueError(
            f"configs/cifar10.py takes densenet_bc_DEPTH_GROWTH or densenet_DEPTH_GROWTH, "
            f"not {network!r}."
        )
    bottleneck, depth, growth_rate = match.groups()
    config.model.name = "densenet_cifar"
    config.model.depth = int(depth)
    config.model.growth_rate = int(growth_rate)
    config.model.bottleneck = bottleneck is not None
    config.batch_size = 64
    config.eval_batch_size = 250
    config.total_epochs = 300.0
    config.data.update(
        name="cifar10",
        eval_split="test",
        image_size=32,
        random_crop=False,
        in_memory=True,
        eval_crop=1.0,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
    config.augment.pad = 4
    config.optimizer.step_boundaries = (0.5, 0.75)
    return config
