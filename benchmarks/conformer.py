"""Forward and backward of a Phi-4-MM Conformer block of full width against transformers', in turns.

One clip of 500 positions (40 s); gradients by the input and by all weights.

python benchmarks/conformer.py --out benchmarks/results/conformer.json
"""

from support.phi_small import compare, serve

POSITIONS = 500


def work_ours() -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from melllm_jax import sharding
    from melllm_jax.config.run import Mesh
    from melllm_jax.encoders import clip_windows, conformer
    from melllm_jax.encoders.window_attention import attend_in_windows
    from melllm_jax.models.parameters import init_model
    from melllm_jax.presets.conformer_baseline import conformer_asr

    cfg = conformer_asr().model
    size = conformer.encoder_sizes(cfg.c, cfg.conformer)
    with jax.set_mesh(sharding.make_mesh(Mesh(fsdp=1), jax.devices()[:1])):
        skeleton, weights = init_model(lambda rngs: conformer.Block(rngs, size), seed=0)
        place = jax.reshard(jnp.arange(POSITIONS)[None], sharding.a("b s"))
        x = np.random.default_rng(0).standard_normal((1, POSITIONS, cfg.c), dtype=np.float32)
        x = jax.reshard(jnp.asarray(x), sharding.a("b s d"))
        table = jax.reshard(jnp.zeros((size["z"], size["n"])), sharding.w("z n"))

        def loss(weights: dict, table: jax.Array, x: jax.Array) -> jax.Array:
            windows = clip_windows.windows(place)
            attend = lambda q, k, v: attend_in_windows(
                q, k, v, distances=table, windows=windows, cfg=cfg.conformer
            )
            return jnp.sum(jnp.square(skeleton.model(weights)(x, attend, windows)))

        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        serve(lambda: jax.block_until_ready(step(weights, table, x)))


def work_torch() -> None:
    import torch
    from transformers import Phi4MultimodalAudioConfig
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as modeling

    torch.set_num_threads(2)
    config = Phi4MultimodalAudioConfig(bias_max_distance=500, attn_implementation="sdpa")
    block = modeling.Phi4MultimodalAudioConformerEncoderLayer(config)
    table = modeling.Phi4MultimodalAudioRelativeAttentionBias(config)
    x = torch.randn(1, POSITIONS, config.hidden_size, requires_grad=True)
    seen = torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.bool)

    def action() -> None:
        for part in (block, table):
            part.zero_grad()
        x.grad = None
        block(x, seen + table(x)).square().sum().backward()

    serve(action)


if __name__ == "__main__":
    compare(
        __file__,
        __doc__ or "",
        work_ours,
        work_torch,
        f"forward and backward of one Conformer block, width 1024, {POSITIONS} positions",
    )
