"""A compiled product of two square matrices, whose rate a step's is compared with."""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from melllm_jax import sharding
from melllm_jax.config.run import Mesh


@dataclasses.dataclass(frozen=True)
class Matmul:
    """Products of random matrices [size size], one after another, on the first device."""

    size: int
    dtype: str
    times: int  # products a call: more than one hides what starting a call takes
    run: Callable[[], jax.Array]

    @property
    def flops(self) -> float:
        """Of one call."""
        return 2.0 * self.size**3 * self.times


def compile_matmul(dtype: str) -> Matmul:
    """8192³ in bfloat16 on an accelerator; on a CPU 2048³ in `dtype`."""
    device = jax.devices()[0]
    size, times = (2048, 1) if device.platform == "cpu" else (8192, 8)
    kind = dtype if device.platform == "cpu" else "bfloat16"
    with jax.set_mesh(sharding.make_mesh(Mesh(), [device])):
        # Scaled so that a product of products neither grows nor dies away.
        left, right = (
            jax.random.normal(key, (size, size), kind) * jnp.asarray(scale, kind)
            for key, scale in zip(
                jax.random.split(jax.random.key(0)), (1.0, size**-0.5), strict=True
            )
        )
        loop = functools.partial(jax.lax.fori_loop, 0, times)
        multiply = jax.jit(lambda x, y: loop(lambda _, z: z @ y, x)).lower(left, right).compile()
    return Matmul(size, kind, times, lambda: jax.block_until_ready(multiply(left, right)))
