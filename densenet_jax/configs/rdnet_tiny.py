"""RDNet-T ("DenseNets Reloaded") on ImageNet with its authors' recipe, 300 epochs of AdamW.

  python main.py --config=configs/rdnet_tiny.py --workdir=runs/rdnet_tiny

Expect 82.8 % top-1 on the 50,000 validation images at 224 pixels (the authors' own network).
Arguments: `paper` (the default) and `tiny`, as in configs/densenet121.py.
"""

from ml_collections import ConfigDict

from densenet_jax.configs import _imagenet


def get_config(arguments: str = "") -> ConfigDict:
    return _imagenet.configure("rdnet_tiny", arguments, {"paper": _imagenet.rdnet})
