"""DenseNet-121 on ImageNet with the paper's recipe: 90 epochs, batch 256.

  python main.py --config=configs/densenet121.py --workdir=runs/densenet121

Expect 75.0 % top-1 on the 50,000 validation images at 224 pixels (the authors' own network).
ImageNet must be prepared for TFDS as ArrayRecord; the command says how if it is not.

Arguments, after a colon, separated by commas:
  tiny   20 steps of 8 small images, to see that everything works before the long run
"""

from ml_collections import ConfigDict

from densenet_jax.configs import default


def get_config(arguments: str = "") -> ConfigDict:
    config = default.get_config()
    config.model.name = "densenet121"
    config.model.dtype = "bfloat16"
    for argument in filter(None, arguments.split(",")):
        if argument != "tiny":
            raise ValueError(f"configs/densenet*.py take the argument 'tiny', not {argument!r}.")
        tiny(config)
    return config


def tiny(config: ConfigDict) -> None:
    """Shrinks a configuration to a minute on two cores."""
    config.model.dtype = "float32"
    config.batch_size = config.eval_batch_size = 8
    config.data.image_size = 64
    config.total_steps = 20
    config.log_every = 1
