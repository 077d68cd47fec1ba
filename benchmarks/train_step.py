"""A training step of the small Phi against transformers with fused AdamW, taken in turns.

python benchmarks/train_step.py --out benchmarks/results/train_step.json
"""

import argparse

from support.phi_small import (
    BATCH,
    TIME,
    VOCABULARY,
    ours,
    paired,
    report,
    serve,
    text_batch,
    theirs,
)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("ours", "torch"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": work_ours, "torch": work_torch}[arguments.worker]()
        return
    taken = paired(__file__, ("ours", "torch"), arguments.rounds)
    command = f"python benchmarks/train_step.py --rounds {arguments.rounds}"
    what = f"training step, {BATCH} x {TIME} tokens, AdamW, clipping"
    report(what, command, taken, arguments.out)


if __name__ == "__main__":
    main()
