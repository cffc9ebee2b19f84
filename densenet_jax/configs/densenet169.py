"""DenseNet-169 on ImageNet.

  python main.py --config=configs/densenet169.py --workdir=runs/densenet169

The arguments are those of configs/densenet121.py.  Expected accuracy on the 50,000 validation
images at 224 pixels:

  paper    (the default) 90 epochs, batch 256: 76.4 % top-1 (the authors' own network)
  mindcv   120 epochs, batch 256, cosine: 77.3 % (MindCV)
  strong   300 epochs, batch 1024: not published
"""

from ml_collections import ConfigDict

from densenet_jax.configs import _imagenet


def get_config(arguments: str = "") -> ConfigDict:
    return _imagenet.configure("densenet169", arguments, _imagenet.RECIPES)
