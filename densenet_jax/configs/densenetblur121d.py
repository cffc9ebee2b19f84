"""DenseNet-121 with a deep stem and blur pooling (timm's densenetblur121d) on ImageNet.

  python main.py --config=configs/densenetblur121d.py --workdir=runs/densenetblur121d

The arguments are those of configs/densenet121.py.  The published weights, trained with a recipe of
timm with RandAugment, reach 76.6 % top-1 at 224 pixels; there are no published results of the
recipes here.
"""

from ml_collections import ConfigDict

from densenet_jax.configs import _imagenet


def get_config(arguments: str = "") -> ConfigDict:
    return _imagenet.configure("densenetblur121d", arguments, _imagenet.RECIPES)
