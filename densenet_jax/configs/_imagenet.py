"""The recipes for ImageNet-1k, shared by the configurations of its networks.

docs/recipes.md has the source of every number here, and the published results.
"""

from ml_collections import ConfigDict

from densenet_jax.configs import default


def configure(network: str, arguments: str, recipes: dict) -> ConfigDict:
    """Returns the configuration of a network.

    Args:
      network: name of the variant, such as "densenet121".
      arguments: a name in `recipes`, `tiny`, or both, separated by commas; without a recipe the
        first one is used.
      recipes: for each name a function that changes a configuration in place.

    Raises:
      ValueError: an argument is unknown, or there is more than one recipe.
    """
    given = [word for word in arguments.split(",") if word]
    chosen = [word for word in given if word in recipes] or [next(iter(recipes))]
    unknown = [word for word in given if word not in (*recipes, "tiny")]
    if unknown or len(chosen) > 1:
        raise ValueError(
            f"configs/{network}.py takes one of {', '.join(recipes)}, and tiny; not {arguments!r}."
        )
    config = default.get_config()
    config.model.name = network
    config.model.dtype = "bfloat16"
    recipes[chosen[0]](config)
    if "tiny" in given:
        tiny(config)
    return config


def paper(config: ConfigDict) -> None:
    """Sets the recipe of Huang et al., 2017, section 4.2; it equals the defaults."""
    config.batch_size = 256
    config.total_epochs = 90.0
    config.optimizer.update(
        name="sgd",
        learning_rate=0.1,
        schedule="step",
        step_boundaries=(1 / 3, 2 / 3),
        step_factor=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
    )


def mindcv(config: ConfigDict) -> None:
    """Sets MindCV's recipe: batch 32 on each of 8 devices, 120 epochs, no warm-up."""
    config.batch_size = 256
    config.total_epochs = 120.0
    config.label_smoothing = 0.1
    config.augment.jitter = (0.4, 0.4, 0.4, 0.0)
    config.data.interpolation = "bilinear"
    config.optimizer.update(
        name="sgd",
        learning_rate=0.1,
        schedule="cosine",
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
    )


def large_batch(config: ConfigDict) -> None:
    """Sets the paper's recipe for 8,192 images a step: Goyal et al., 2017, sections 2 and 5.1.

    The rate grows with the batch, after a warm-up of 5 epochs; 32 images share statistics.
    """
    paper(config)
    config.batch_size = 8192
    config.batch_norm.group_size = 32
    config.optimizer.update(reference_batch_size=256, warmup="5 epochs")


def lars(config: ConfigDict) -> None:
    """Sets the recipe of Google's TPU code for ResNet-50 with 32,768 images a step.

    github.com/tensorflow/tpu, models/official/resnet: lars_util.py (rate, warm-up, schedule),
    configs/cloud/v3-512.yaml (batch, length, smoothing), configs/resnet_config.py (decay,
    momentum).  32 images share statistics, as in Goyal et al., 2017.
    """
    config.batch_size = 32768
    config.batch_norm.group_size = 32
    config.total_epochs = 91.0
    config.label_smoothing = 0.1
    config.optimizer.update(
        name="lars",
        learning_rate=32.0,
        reference_batch_size=32768,
        schedule="polynomial",
        warmup="14 epochs",
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
    )


def strong(config: ConfigDict) -> None:
    """Sets the recipe of torchvision's second weights (Vryniotis, 2021), at half the epochs."""
    config.batch_size = 1024
    config.total_epochs = 300.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999
    config.data.train_sizes = (176,)
    config.data.eval_crop = 0.965  # resizes the shorter side to 232 pixels
    config.augment.policy = "trivialaugment"
    config.augment.erase = 0.1
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.optimizer.update(
        name="sgd",
        learning_rate=0.5,
        schedule="cosine",
        warmup="5 epochs",
        momentum=0.9,
        nesterov=False,
        weight_decay=2e-5,
    )


def rdnet(config: ConfigDict) -> None:
    """Sets the recipe of Kim et al., 2024, appendix; the variant sets the rate of drop path."""
    config.batch_size = 512
    config.total_epochs = 300.0
    config.label_smoothing = 0.1
    config.data.eval_crop = 0.9
    config.augment.policy = "randaugment"
    config.augment.policy_ops = 2
    config.augment.policy_magnitude = 9
    config.augment.erase = 0.25
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        warmup="20 epochs",
        weight_decay=0.05,
    )


def tiny(config: ConfigDict) -> None:
    """Shrinks a configuration so that it runs in a minute on two cores."""
    config.model.dtype = "float32"
    config.batch_size = config.eval_batch_size = 8
    config.batch_norm.group_size = None
    config.data.image_size = 64
    config.data.train_sizes = tuple(64 for _ in config.data.train_sizes)
    config.total_steps = 20
    config.log_every = 1


RECIPES = {
    "paper": paper,
    "mindcv": mindcv,
    "strong": strong,
    "large_batch": large_batch,
    "lars": lars,
}
