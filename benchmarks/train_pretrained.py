"""A training step of SmolLM2-135M against transformers, and of its LoRA against PEFT, in turns.

python benchmarks/train_pretrained.py MODEL_DIR --what full --out FILE

MODEL_DIR is a checkpoint in Hugging Face's layout, of which transformers reads the weights; ours
are random of the same sizes. Both take AdamW and clip the norm of the gradient; all positions are
text and each is a target. Beside the figures stands what the machine allows: the multiplications
that cannot be avoided over the rate of a large matrix product.
"""

import argparse
import dataclasses
import os
import pathlib

from support.phi_small import paired, report, serve, text_batch

ROWS, LENGTH = 2, 384  # the preset smollm2_asr's
RANK = 32
WHAT, THEIRS = os.environ.get("WHAT", "full"), os.environ.get("THEIRS", "")


def ours():
    """The run of the preset, on one CPU device."""
    from melllm_jax.config.model import Lora
    from melllm_jax.presets import catalog

    run = catalog.preset("smollm2_asr")
    lora = WHAT == "lora"
    optim = dataclasses.replace(
        run.optim, train="lora" if lora else "all", lr=1e-4, warmup=0, schedule="linear", final=1.0
    )
    rank = Lora(r=RANK, alpha=2.0 * RANK) if lora else Lora()
    return dataclasses.replace(run, optim=optim, lora=rank)


def work_ours() -> None:
    import jax

    from launch.runtime import malloc
    from melllm_jax import sharding
    from melllm_jax.objectives.next_token import NextToken
    from melllm_jax.training.train_step import Update

    run = ours()
    malloc.keep_freed_memory()  # as `melllm train` does
    with jax.set_mesh(sharding.make_mesh(run.mesh, jax.devices()[:1])):
        update = Update(NextToken(run))
        batch = text_batch(ROWS, LENGTH, run.model.v, run.mel.p)
        state, batch = update.init_state(), sharding.shard_batch(batch)
        step = jax.jit(update, donate_argnums=0).lower(state, batch).compile()

        def action() -> None:
            nonlocal state
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))

        serve(action)


def work_torch() -> None:
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["THREADS"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(THEIRS, dtype=torch.float32)
    if WHAT == "lora":
        import peft

        config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
    model.train()
    learnt = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4, weight_decay=0.01, fused=True)
    tokens = torch.randint(3, model.config.vocab_size, (ROWS, LENGTH))

    def action() -> None:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    serve(action)


def limit() -> dict[str, float]:
    """Milliseconds of the products alone: 6 FLOPs a weight and position, 4 where it is frozen."""
    from launch.bench.matmul_rate import measure_matmul_rate

    m = ours().model
    layer = m.d * (m.n + 2 * m.k) * m.h + m.n * m.h * m.d + 3 * m.d * m.f
    weights = m.l * layer + m.v * m.d
    attended = m.l * m.n * m.h * LENGTH  # half of two products of all with all
    products = (4 if WHAT == "lora" else 6) * weights + 6 * attended
    rate = measure_matmul_rate("float32")
    seconds = ROWS * LENGTH * products / rate
    return {"matmul_flops_per_second": rate, "limit_milliseconds": 1e3 * seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--worker", choices=("ours", "torch"))
    parser.add_argument("--what", choices=("full", "lora"), default="full")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": work_ours, "torch": work_torch}[arguments.worker]()
        return
    global WHAT
    WHAT = arguments.what
    threads = str(len(os.sched_getaffinity(0)))
    os.environ |= {"WHAT": WHAT, "THEIRS": arguments.model, "THREADS": threads}
    os.environ["JAX_PLATFORMS"] = "cpu"
    taken = paired(__file__, ("ours", "torch"), arguments.rounds)
    name = pathlib.Path(arguments.model).name
    words = f"--what {WHAT} --rounds {arguments.rounds}"
    command = f"python benchmarks/train_pretrained.py {name} {words}"
    kind = "LoRA of rank 32 on all matrices, against PEFT" if WHAT == "lora" else "all weights"
    what = f"{name}: training step, {ROWS} x {LENGTH} tokens, {kind}"
    load = [round(x, 1) for x in os.getloadavg()]
    report(what, command, taken, arguments.out, load=load, **limit())


if __name__ == "__main__":
    main()
