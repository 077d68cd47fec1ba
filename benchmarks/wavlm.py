"""WavLM-base of random weights hears ten seconds against transformers' WavLMModel, in turns.

python benchmarks/wavlm.py --out benchmarks/results/wavlm.json
"""

from support.phi_small import compare, serve

SAMPLES = 10 * 16_000


def wave():
    """Noise [1 w], the same for both."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((1, SAMPLES), dtype=np.float32)


def work_ours() -> None:
    import jax

    from melllm_jax import sharding
    from melllm_jax.config.encoders import WavLM
    from melllm_jax.config.run import Mesh
    from melllm_jax.encoders.wavlm import WavLMEncoder
    from melllm_jax.models.parameters import init_model

    with jax.set_mesh(sharding.make_mesh(Mesh(fsdp=1), jax.devices()[:1])):
        skeleton, weights = init_model(lambda rngs: WavLMEncoder(rngs, WavLM()), seed=0)
        x = jax.device_put(wave())
        run = jax.jit(lambda weights, x: skeleton.model(weights)(x))
        serve(lambda: jax.block_until_ready(run(weights, x)))


def work_torch() -> None:
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.WavLMModel(transformers.WavLMConfig()).eval()
    x = torch.tensor(wave())

    def action() -> None:
        with torch.no_grad():
            model(x)

    serve(action)


if __name__ == "__main__":
    compare(
        __file__,
        __doc__ or "",
        work_ours,
        work_torch,
        "forward of WavLM-base, 10 s of sound, batch 1",
    )
