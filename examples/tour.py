"""Load a run, transcribe a file, look at its scores, and make one training step by hand.

    melllm quickstart
    python examples/tour.py quickstart/run quickstart/samples/*.flac

The run and its corpus are those of the quickstart; any other run will do.
"""

import sys

import jax

from launch import api

run_folder, sound = sys.argv[1:3]

model = api.load(run_folder)
print(f"{sum(x.size for x in model.params.values()):,} weights, {model.step} updates")
print("heard:", model.transcribe(sound))

# What the model takes for the first token of the text, after reading the whole sound.
ids = model.prompt(sound)  # int32 [t]: a placeholder for each patch of mel, then the question
scores = model.logits(ids, sound)  # float32 [t v]
print("first token:", repr(model.tokenizer.decode([int(scores[-1].argmax())])))

# A batch as training sees it, and one update of the weights as a pure function of the state.
batch = next(api.batches(model.run))
with jax.set_mesh(model.mesh):
    update = api.Update(api.objective_of(model.run))
    state = update.state_from(model.params)
    state, metrics = jax.jit(update)(state, api.shard_batch(batch))
print(f"{batch.tokens.shape} positions, loss {metrics['loss']:.3f} nats a token")
