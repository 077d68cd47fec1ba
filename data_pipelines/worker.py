"""A process of `workers.Workers`: fills the rows of its lanes in the slots that it is told."""

from collections.abc import Callable, Mapping
import json
import mmap
import os
from queue import SimpleQueue
import sys
import threading
import time
from typing import Any

import numpy as np

from data_pipelines import sheet, text
from data_pipelines.pipeline import lanes_of
from data_pipelines.side import Side
from data_pipelines.workers import step
from melllm_jax import config
from melllm_jax.batch import Batch
from melllm_jax.config import Run
from melllm_jax.errors import Fault, Mistake

Answer = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Take orders on standard input, a line each, the first of what to read, until it closes."""
    setup = json.loads(sys.stdin.readline())
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    with open(setup["answers"], "w") as out:
        answer: Answer = lambda message: print(json.dumps(message), file=out, flush=True)
        run = config.from_json(setup["run"], Run)
        slots = _Slots(run, setup)
        try:
            side = _side(run, setup, answer)
        except (Mistake, Fault) as error:
            trouble = _trouble(error)
            while True:
                if "fill" in orders.get():
                    answer(trouble)
        while True:
            order = orders.get()
            if "fill" in order:
                answer(_filled(side, slots[order["fill"]], setup["places"]))
            else:
                side.set_state(order["go"])


def _side(run: Run, setup: Mapping[str, Any], answer: Answer) -> Side:
    tokenizer = text.load(run.text.tokenizer)
    if (digest := tokenizer.digest()) != setup["tokenizer"]:
        rule = f"has digest {digest}, the run's is {setup['tokenizer']}"
        raise Mistake(f"text.tokenizer={run.text.tokenizer}: {rule}")
    told = lambda shard, said: answer({"told": [shard, said]})
    return lanes_of(run, tokenizer, setup["lanes"], setup["split"], told).side()


def _filled(side: Side, batch: Batch, places: list[int]) -> dict[str, Any]:
    try:
        side.fill(batch, places)
    except (Mistake, Fault, StopIteration) as error:
        return _trouble(error)
    return {"lanes": side.get_state()["lanes"], "worked": time.process_time()}


def _trouble(error: Exception) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in (Mistake, Fault, StopIteration) if isinstance(error, kind)]
    return {"trouble": [kinds[0], str(error)]}


class _Slots:
    """Batches by slot, mapped when they are first asked for."""

    def __init__(self, run: Run, setup: Mapping[str, Any]) -> None:
        self._run, self._rows, self._file = run, setup["rows"], setup["memory"]
        self._found: dict[int, Batch] = {}

    def __getitem__(self, slot: int) -> Batch:
        if slot not in self._found:
            size = step(self._run, self._rows)
            memory = np.frombuffer(mmap.mmap(self._file, size, offset=size * slot), np.uint8)
            self._found[slot] = sheet.blank(self._run, self._rows, memory)
        return self._found[slot]


def _listen(orders: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(1)  # nobody is there to read for
