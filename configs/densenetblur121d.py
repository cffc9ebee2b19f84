"""DenseNet-121 with a deep stem and blur pooling (timm's densenetblur121d) on ImageNet.

  python main.py --config=configs/densenetblur121d.py --workdir=runs/densenetblur121d

Arguments are those of configs/densenet121.py.  The published weights, of a recipe of timm's with
RandAugment, have 76.6 % top-1 at 224 pixels; with the recipes here nobody has published any.
"""

from ml_collections import ConfigDict

from densenet_jax.configs import _imagenet


def get_config(arguments: str = "") -> ConfigDict:
    return _imagenet.configure("densenetblur121d", arguments, _imagenet.RECIPES)
