"""The floating-point type in which a device computes a DenseNet fastest."""

import jax
import jax.numpy as jnp


def fastest_dtype() -> jnp.dtype:
    """Returns the type for the devices of this process's JAX.

    bfloat16 on TPUs, AMD's GPUs and NVIDIA's from the A100's generation on (compute capability
    8.0); float16 on older NVIDIA GPUs (T4, V100), which have no bfloat16; float32 elsewhere, on
    CPUs, for example, whose kernels are for float32.
    """
    device = jax.devices()[0]
    capability = str(getattr(device, "compute_capability", ""))
    if device.platform == "tpu":
        return jnp.dtype(jnp.bfloat16)
    if device.platform == "gpu" and capability:
        old = capability[0].isdigit() and float(capability) < 8
        return jnp.dtype(jnp.float16 if old else jnp.bfloat16)
    return jnp.dtype(jnp.float32)
