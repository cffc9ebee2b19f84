"""DenseNet-264 on ImageNet with the paper's recipe: 90 epochs, batch 256.

  python main.py --config=configs/densenet264.py --workdir=runs/densenet264

Expect 77.9 % top-1 on the 50,000 validation images at 224 pixels (the authors' own network).
Arguments are those of configs/densenet121.py.
"""

from ml_collections import ConfigDict

from densenet_jax.configs import densenet121


def get_config(arguments: str = "") -> ConfigDict:
    config = densenet121.get_config(arguments)
    config.model.name = "densenet264"
    return config
