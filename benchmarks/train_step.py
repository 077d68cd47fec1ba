"""A training step of the small Phi against transformers with fused AdamW, taken in turns.

python benchmarks/train_step.py --out benchmarks/results/train_step.json
"""

from support.phi_small import BATCH, TIME, VOCABULARY, compare, ours, serve, text_batch, theirs


def work_ours() -> None:
    import jax

    from launch.runtime import malloc
    from melllm_jax import sharding
    from melllm_jax.objectives.next_token import NextToken
    from melllm_jax.training.train_step import Update

    malloc.keep_freed_memory()  # as `melllm train` does
    with jax.set_mesh(sharding.make_mesh(ours().mesh, jax.devices()[:1])):
        update = Update(NextToken(ours()))
        state, batch = update.init_state(), sharding.shard_batch(text_batch(BATCH, TIME))
        step = jax.jit(update, donate_argnums=0).lower(state, batch).compile()

        def action() -> None:
            nonlocal state
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))

        serve(action)


def work_torch() -> None:
    import torch

    model = theirs().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens = torch.randint(3, VOCABULARY, (BATCH, TIME))

    def action() -> None:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    serve(action)


if __name__ == "__main__":
    what = f"training step, {BATCH} x {TIME} tokens, AdamW, clipping"
    compare(__file__, __doc__ or "", work_ours, work_torch, what)
