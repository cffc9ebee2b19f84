"""DenseNet-264 on ImageNet.

  python main.py --config=configs/densenet264.py --workdir=runs/densenet264

The arguments are those of configs/densenet121.py.  Expected accuracy on the 50,000 validation
images at 224 pixels:

  paper    (the default) 90 epochs, batch 256: 77.9 % top-1 (the authors' own network)
  mindcv   120 epochs, batch 256, cosine: not published
  strong   300 epochs, batch 1024: not published
"""

from ml_collections import ConfigDict

from densenet_jax.configs import _imagenet


def get_config(arguments: str = "") -> ConfigDict:
    return _imagenet.configure("densenet264", arguments, _imagenet.RECIPES)
