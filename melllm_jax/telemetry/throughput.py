"""Turns the numbers of each update into metrics: rates, shares and running totals."""

from collections.abc import Sequence
import time
from typing import Any

import jax
import numpy as np

from melllm_jax import chips, flops, vocoder_flops
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.telemetry.goodput import Goodput


class ThroughputMeter:
    """Rates, shares and running totals of a run's updates."""

    def __init__(
        self,
        run: BaseRun,
        mesh: jax.sharding.Mesh,
        sizes: Sequence[int],
        seen: np.ndarray,
        spent: Goodput,
    ):
        chip = chips.find_chip(mesh.devices.flat[0].device_kind)
        self._peak = chip.flops * mesh.size if chip else None
        self._flops = _update_flops(run)
        sources = run.data.sources
        self._names = [x.path if x.use == "auto" else f"{x.path}:{x.use}" for x in sources]
        self._sizes, self.seen = sizes, seen
        self._spent, self._before = spent, dict(spent.seconds)

    def read(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Metrics of one update, from its numbers and the time since the update before.

        What was spent in between on compiling, saving or scoring is no time of the update.
        """
        share = self._spent.metrics()
        passed = {kind: x - self._before[kind] for kind, x in self._spent.seconds.items()}
        self._before = dict(self._spent.seconds)
        seconds = passed["update"] + passed["data"]
        self.seen += numbers.pop("examples")
        metrics = {name: value.item() for name, value in numbers.items()}
        tokens = metrics.pop("tokens")
        metrics |= {
            "tokens": tokens,  # positions in use
            "speech_share": metrics.pop("speech") / max(tokens, 1.0),  # of them
            "tokens_per_second": tokens / seconds,
            "audio_seconds_per_second": metrics.pop("audio") / seconds,
            "seconds": seconds,
            "mfu": self._flops / seconds / self._peak if self._peak else None,
            "data_wait": passed["data"] / seconds,
            "examples": int(self.seen.sum()),
            "time": time.time(),
        } | share
        for i, name in enumerate(self._names):
            metrics[f"examples/{name}"] = int(self.seen[i])
            if self._sizes:
                metrics[f"epoch/{name}"] = self.seen[i] / self._sizes[i]
        return metrics


def _update_flops(run: BaseRun) -> float:
    if isinstance(run, VocoderRun):
        return vocoder_flops.vocoder_update_flops(run)
    assert isinstance(run, Run)
    return flops.update_flops(run)
