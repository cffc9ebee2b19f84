"""The examples that a report shows as pictures, with class activation maps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.data.reading import host
from densenet_jax.data.sources.source import Arrays
from densenet_jax.report import activation_maps, pictures
from densenet_jax.training import mesh as meshes
from densenet_jax.training.experiment import Experiment


def with_maps(
    setup: Experiment, variables: Any, index: np.ndarray, outputs: np.ndarray
) -> dict[str, Any]:
    """Returns small pictures of examples, and the regions that support an output of the network.

    Args:
      setup: the experiment.
      variables: of the model.
      index: numbers of the examples in the evaluation split, int [Q].
      outputs: the class, label or number to explain for each of them, int [Q].

    Returns:
      {"kept": positions in `index` of the P examples whose image can be read, int [P]; "pictures":
      uint8 [P, h, w, C]; "maps": float32 [P, h', w']}; {} without any.
    """
    kept, images = [], []
    for position, number in enumerate(index.tolist()):
        try:
            images.append(image(setup, number))
        except host.ImageError:
            continue
        kept.append(position)
    if not kept:
        return {}
    variables = jax.device_get(variables)
    # One device of this process is enough for a few pictures, and then holds all of the result.
    with jax.set_mesh(meshes.make_mesh(devices=jax.local_devices()[:1])):
        normalized = setup.normalize(jnp.asarray(np.stack(images)))
        explained = jnp.asarray(outputs[kept])
        maps = activation_maps.of_outputs(setup.model, variables, normalized, explained)
    return {
        "kept": np.array(kept),
        "pictures": np.stack([small(setup, picture) for picture in images]),
        "maps": np.asarray(maps, np.float32),
    }


def image(setup: Experiment, index: int) -> np.ndarray:
    """Returns an example of the evaluation split as the model sees it, [H, W, C].

    Raises:
      ImageError: it cannot be decoded.
    """
    examples = setup.eval_source.examples
    if isinstance(examples, Arrays) and examples.fitted:
        return examples.images[index]
    return host.eval_crop(
        examples[index]["image"],
        channels=setup.config.data.channels,
        **setup.preprocessing.reading,
    )


def small(setup: Experiment, image: np.ndarray) -> np.ndarray:
    """Returns an image [H, W, C] as people see it on the page, uint8 [h, w, 1 or 3]."""
    return pictures.thumbnail(pictures.shown(image, setup.preprocessing.ends))
