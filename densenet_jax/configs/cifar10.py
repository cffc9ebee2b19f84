"""CIFAR-10 with the paper's recipe: 300 epochs, batch 64, by default DenseNet-BC (L=100, k=12).

  python main.py --config=configs/cifar10.py --workdir=runs/cifar10

Expect 95.5 % top-1 (the paper has 4.51 % error), if the images were never compressed as JPEG.
TFDS's `cifar10` must be prepared as ArrayRecord; if it is not, the command says how.

Arguments follow a colon and are separated by commas.  A network, BC or plain, with depth and growth
rate:
  densenet_bc_190_40    the paper's largest: 96.5 %
  densenet_40_12        plain, 94.8 %
  densenet_bc_22_12     learns within minutes on a laptop
A recipe:
  modern   the same network with TrivialAugment and its training (Müller and Hutter, 2021), random
           erasing (Zhong et al., 2020) and averaged parameters; meant to exceed the paper's 95.5 %,
           not yet run to its end
  speed    a wide, shallow network, one cycle (Smith and Topin, 2018); meant to reach 94 % within a
           minute or so on a GPU, not yet run on one
  cpu      the paper's network on CPU cores alone, 48 epochs with Muon and random erasing: 94.96 %
           in 5.6 hours on two cores (docs/results.md)
  cpu30    28 minutes of training on two CPU cores: 88.2 and 87.9 % (docs/results.md)
CIFAR-100: --config.data.name=cifar100
"""

import re

from ml_collections import ConfigDict

from densenet_jax.configs import default


def get_config(arguments: str = "") -> ConfigDict:
    config = default.get_config()
    set_network(config, "densenet_bc_100_12")
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
    recipes = {"modern": modern, "speed": speed, "cpu": cpu, "cpu30": cpu30}
    for argument in filter(None, arguments.split(",")):
        if argument in recipes:
            recipes[argument](config)
        else:
            set_network(config, argument)
    return config


def set_network(config: ConfigDict, network: str) -> None:
    match = re.fullmatch(r"densenet_(bc_)?(\d{1,4})_(\d{1,4})", network)
    if match is None:
        raise ValueError(
            f"configs/cifar10.py takes densenet_bc_DEPTH_GROWTH, densenet_DEPTH_GROWTH, modern, "
            f"speed, cpu or cpu30, not {network!r}."
        )
    bottleneck, depth, growth_rate = match.groups()
    config.model.name = "densenet_cifar"
    config.model.depth = int(depth)
    config.model.growth_rate = int(growth_rate)
    config.model.bottleneck = bottleneck is not None


def modern(config: ConfigDict) -> None:
    """Keeps the network and sets a recipe with advances in training since 2017."""
    config.batch_size = 128
    config.model.dtype = "bfloat16"
    config.augment.policy = "trivialaugment"
    config.augment.erase = 0.5
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5 epochs"
    config.optimizer.weight_decay = 5e-4
    config.ema_decay = 0.999
    config.eval_every_epochs = 5.0
    config.steps_per_dispatch = 50


def speed(config: ConfigDict) -> None:
    """Halves the resolution in the stem, and makes products large enough for tensor cores."""
    config.batch_size = 512
    config.eval_batch_size = 1000
    config.total_epochs = 20.0
    config.label_smoothing = 0.1
    config.model.dtype = "bfloat16"
    config.model.update(stem="cifar_half", stem_features=64, block_sizes=(6, 12, 8), growth_rate=48)
    config.augment.pad = 2
    one_cycle(config, learning_rate=0.4)
    config.steps_per_dispatch = 49  # two dispatches per epoch


def cpu(config: ConfigDict) -> None:
    """Keeps the network and trains it in 48 instead of the paper's 300 epochs.

    Without random erasing (Zhong et al., 2020) the network knows 99 % of the training images by
    heart after 32 epochs, and 20 more gained nothing beyond chance (docs/results.md).

    One epoch is 38 trillion multiplications: minutes on a few cores.  The run saves its state every
    1,000 steps, and resumes to the bit however often it is stopped.  Where the processor has no
    products of bfloat16, they are computed in float32.
    """
    config.batch_size = 128
    config.total_epochs = 48.0
    config.label_smoothing = 0.1
    config.model.dtype = "bfloat16"
    config.augment.erase = 0.5
    muon_cycle(config)
    config.optimizer.warmup = "0.15"


def cpu30(config: ConfigDict) -> None:
    """Sets a network and a recipe for 30 minutes of training on two cores.

    The stem halves the resolution, and the few layers are wide with narrow bottlenecks: 52 million
    multiplications an image, for 14 epochs.  Muon learns more in an epoch than momentum does: 1.1
    points more over the whole run, 3.9 over three epochs (docs/results.md).
    """
    config.batch_size = 128
    config.eval_batch_size = 500
    config.total_epochs = 14.0
    config.label_smoothing = 0.1
    config.model.update(
        stem="cifar_half",
        stem_features=64,
        block_sizes=(2, 4, 6),
        growth_rate=48,
        bottleneck_width=2,
    )
    config.augment.pad = 2
    muon_cycle(config)


def muon_cycle(config: ConfigDict) -> None:
    one_cycle(config, learning_rate=0.02)
    config.optimizer.name = "muon"
    config.optimizer.weight_decay = 0.1


def one_cycle(config: ConfigDict, learning_rate: float) -> None:
    config.optimizer.schedule = "one_cycle"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup = "0.25"
    config.optimizer.weight_decay = 5e-4
    config.eval_every_epochs = 4.0
