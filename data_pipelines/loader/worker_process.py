"""A worker process of `worker_pool.WorkerPool`: fills the rows of its lanes in shared buffers.

It reads messages from standard input, a JSON object a line: first the setup, then "fill" with the
index of a buffer, which it answers, or "go" with a state to continue from.
"""

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
from data_pipelines.text.load_tokenizer import load_tokenizer, tokenizer_name
from melllm_jax.batch import Batch
from melllm_jax.config.overrides import from_json
from melllm_jax.config.run import BaseRun
from melllm_jax.errors import Fault, Mistake

SendReply = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Serves messages from standard input until it closes."""
    setup = json.loads(sys.stdin.readline())
    messages: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_receive_messages, args=(messages,), daemon=True).start()
    with open(setup["answers"], "w") as out:
        reply: SendReply = lambda message: print(json.dumps(message), file=out, flush=True)
        run = from_json(setup["run"], BaseRun)
        buffers = MappedBatchBuffers(run, setup)
        try:
            batcher = _make_batcher(run, setup, reply)
        except (Mistake, Fault) as error:
            error_reply = _error_reply(error)
            while True:
                if "fill" in messages.get():
                    reply(error_reply)
        while True:
            message = messages.get()
            if "fill" in message:
                reply(_fill_buffer(batcher, buffers[message["fill"]], setup["places"]))
            else:
                batcher.set_state(message["go"])


def _make_batcher(run: BaseRun, setup: Mapping[str, Any], reply: SendReply) -> LaneBatcher:
    name = tokenizer_name(run)
    tokenizer = load_tokenizer(name)
    if (digest := tokenizer.digest()) != setup["tokenizer"]:
        rule = f"has digest {digest}, the run's is {setup['tokenizer']}"
        raise Mistake(f"text.tokenizer={name}: {rule}")
    log_once = lambda shard, text: reply({"told": [shard, text]})
    return make_lanes(run, tokenizer, setup["lanes"], setup["split"], log_once).batcher()


def _fill_buffer(batcher: LaneBatcher, batch: Batch, slots: list[int]) -> dict[str, Any]:
    try:
        batcher.fill(batch, slots)
    except (Mistake, Fault, StopIteration) as error:
        return _error_reply(error)
    return {"lanes": batcher.get_state()["lanes"], "worked": time.process_time()}


def _error_reply(error: Exception) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in (Mistake, Fault, StopIteration) if isinstance(error, kind)]
    return {"trouble": [kinds[0], str(error)]}


def _receive_messages(messages: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        messages.put(json.loads(line))
    os._exit(1)  # the process that trains is gone
