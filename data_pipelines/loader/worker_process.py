"""A process of `workers.Workers`: fills the rows of its lanes in the slots that it is told."""

from collections.abc import Callable, Mapping
import json
import os
from queue import SimpleQueue
import sys
import threading
import time
from typing import Any

from data_pipelines.loader.batch_assembly import LaneBatcher
from data_pipelines.loader.pipeline import make_lanes
from data_pipelines.loader.shared_buffers import MappedBatchBuffers
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.batch import Batch
from melllm_jax.config.overrides import from_json
from melllm_jax.config.run import Run
from melllm_jax.errors import Fault, Mistake

SendReply = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Take orders on standard input, a line each, the first of what to read, until it closes."""
    setup = json.loads(sys.stdin.readline())
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    with open(setup["answers"], "w") as out:
        answer: SendReply = lambda message: print(json.dumps(message), file=out, flush=True)
        run = from_json(setup["run"], Run)
        slots = MappedBatchBuffers(run, setup)
        try:
            batcher = _make_batcher(run, setup, answer)
        except (Mistake, Fault) as error:
            trouble = _error_reply(error)
            while True:
                if "fill" in orders.get():
                    answer(trouble)
        while True:
            order = orders.get()
            if "fill" in order:
                answer(_fill_slot(batcher, slots[order["fill"]], setup["places"]))
            else:
                batcher.set_state(order["go"])


def _make_batcher(run: Run, setup: Mapping[str, Any], answer: SendReply) -> LaneBatcher:
    tokenizer = load_tokenizer(run.text.tokenizer)
    if (digest := tokenizer.digest()) != setup["tokenizer"]:
        rule = f"has digest {digest}, the run's is {setup['tokenizer']}"
        raise Mistake(f"text.tokenizer={run.text.tokenizer}: {rule}")
    told = lambda shard, said: answer({"told": [shard, said]})
    return make_lanes(run, tokenizer, setup["lanes"], setup["split"], told).batcher()


def _fill_slot(batcher: LaneBatcher, batch: Batch, places: list[int]) -> dict[str, Any]:
    try:
        batcher.fill(batch, places)
    except (Mistake, Fault, StopIteration) as error:
        return _error_reply(error)
    return {"lanes": batcher.get_state()["lanes"], "worked": time.process_time()}


def _error_reply(error: Exception) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in (Mistake, Fault, StopIteration) if isinstance(error, kind)]
    return {"trouble": [kinds[0], str(error)]}


def _listen(orders: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(1)  # nobody is there to read for
