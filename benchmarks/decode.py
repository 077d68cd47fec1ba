"""Cached greedy decoding of the small Phi against transformers' generate, taken in turns.

python benchmarks/decode.py --batch 1 --out benchmarks/results/decode.json
"""

import argparse
import os

from support.phi_small import VOCABULARY, ours, paired, report, serve, text_batch, theirs

PROMPT, NEW = 128, 128
ROWS = int(os.environ.get("ROWS", "1"))


def work_ours() -> None:
    import jax
    import numpy as np

    from melllm_jax import sharding
    from melllm_jax.inference.generate import Decoder
    from melllm_jax.inference.sampling import DecodingOptions
    from melllm_jax.objectives.next_token import NextToken
    from melllm_jax.training.train_step import Update

    with jax.set_mesh(sharding.make_mesh(ours().mesh, jax.devices()[:1])):
        update = Update(NextToken(ours()))
        state = update.init_state()
        model = update.skeleton.model(state.trained | state.frozen)
        decoder = Decoder(model, end=VOCABULARY, options=DecodingOptions(guard=False))
        prompt, limits = text_batch(ROWS, PROMPT), np.full(ROWS, NEW)

        def action() -> None:
            out = jax.device_get(decoder(prompt, limits))
            assert out.tokens.shape == (ROWS, NEW)

        serve(action)


def work_torch() -> None:
    import torch

    model = theirs().eval()
    tokens = torch.randint(3, VOCABULARY, (ROWS, PROMPT))
    mask = torch.ones_like(tokens)

    def action() -> None:
        with torch.no_grad():
            out = model.generate(
                tokens,
                attention_mask=mask,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
            )
        assert out.shape == (ROWS, PROMPT + NEW)

    serve(action)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("ours", "torch"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": work_ours, "torch": work_torch}[arguments.worker]()
        return
    os.environ["ROWS"] = str(arguments.batch)  # the workers inherit it
    taken = paired(__file__, ("ours", "torch"), arguments.rounds)
    command = f"python benchmarks/decode.py --batch {arguments.batch} --rounds {arguments.rounds}"
    what = f"cached greedy decoding, prompt {PROMPT}, {NEW} new tokens"
    report(what, command, taken, arguments.out, batch=arguments.batch)


if __name__ == "__main__":
    main()
