"""DenseNet-121 on ImageNet.

  python main.py --config=configs/densenet121.py --workdir=runs/densenet121

Arguments follow a colon and are separated by commas: one recipe, and `tiny`.

  paper    (the default) 90 epochs, batch 256: 75.0 % top-1 (the authors' own network)
  mindcv   120 epochs, batch 256, cosine: 75.6 % (MindCV)
  strong   300 epochs, batch 1024, meant to exceed 76.5 %; nobody has run it yet.  docs/recipes.md
           gives the reasons.  With a teacher: --config.distill.teacher=rdnet_tiny.nv_in1k
  large_batch   the paper's recipe with batch 8,192 and a matching rate, for many devices
  lars     91 epochs, batch 32,768 with LARS, for very many devices; nobody has run this one or
           large_batch to its end
  tiny     20 steps of 8 small images, to see that everything works before the long run

Accuracies are on the 50,000 validation images at 224 pixels.  ImageNet must be prepared for TFDS as
ArrayRecord; if it is not, the command says how.
"""

from ml_collections import ConfigDict

from densenet_jax.configs import _imagenet


def get_config(arguments: str = "") -> ConfigDict:
    return _imagenet.configure("densenet121", arguments, _imagenet.RECIPES)
