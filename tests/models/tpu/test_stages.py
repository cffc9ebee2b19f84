"""The stages for TPUs: transformations of JAX, and what devices send to each other.

`tests/models/block` compares values and gradients with the reference.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from densenet_jax.models.block import dense_block
from densenet_jax.models.block.statistics import moments
from densenet_jax.models.tpu import stages

RNG = np.random.default_rng(0)


def random(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_gradients_are_mapped_and_differentiated():
    norms = [{"scale": 1 + 0.2 * random(c), "bias": random(c)} for c in (5, 4)]
    layers = [[(norms[0], random(1, 1, 5, 4)), (norms[1], random(3, 3, 4, 3))]]
    x, direction = random(2, 2, 2, 3, 3, 5)  # two batches of two images each

    def gradient(x, implementation):
        def loss(x):
            features, *_ = dense_block.train(
                x, moments(x), layers, epsilon=1e-3, implementation=implementation
            )
            return jnp.sin(features).sum()

        return jax.grad(loss)(x)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(implementation):
        def of_batch(x):
            return gradient(x, implementation)

        return jax.vmap(of_batch)(x), jax.jvp(of_batch, (x[0],), (direction[0],))[1]

    for actual, expected in zip(derivatives("tpu"), derivatives("reference"), strict=True):
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_devices_send_gradients_and_not_the_products_that_these_are_made_of():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        # The buffer has 12 channels, 8 of which the kernel reads.
        split = jax.NamedSharding(mesh, jax.P("data"))
        maps = [jax.device_put(random(8, 2, 2, c), split) for c in (12, 4)]

        @jax.jit
        def gradients(x, dy, gain, shift, kernel):
            return stages.gradients_of_parameters(x, gain, shift, kernel, dy, "relu")

        compiled = gradients.lower(*maps, random(8), random(8), random(8, 4)).compile()
    sent = [
        math.prod(map(int, filter(None, dims.split(","))))
        for shapes in re.findall(r"= (.*?) all-reduce(?:-start)?\(", compiled.as_text())
        for dims in re.findall(r"f32\[([\d,]*)\]", shapes)
    ]
    assert sum(sent) == 8 * 4 + 8 + 8
