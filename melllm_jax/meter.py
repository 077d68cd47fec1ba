"""Seconds, shares and running totals of a run's updates."""

from collections.abc import Sequence
import time
from typing import Any

import jax
import numpy as np

from melllm_jax import config, flops


class Meter:
    """Seconds, shares and running totals of a run's updates."""

    def __init__(
        self, run: config.Run, mesh: jax.sharding.Mesh, sizes: Sequence[int], seen: np.ndarray
    ):
        chip = flops.chip(mesh.devices.flat[0].device_kind)
        self._peak = chip.flops * mesh.size if chip else None
        self._flops = flops.step(run)
        self._names = [source.path for source in run.data.sources]
        self._sizes, self.seen = sizes, seen
        self._waited = 0.0
        self.start()

    def start(self) -> None:
        """Time runs from here."""
        self._before, self._waited = time.perf_counter(), 0.0

    def waiting(self) -> "Meter":
        """A context whose time is time waited for data."""
        return self

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._waited += time.perf_counter() - self._entered

    def read(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Metrics of one update, from its numbers and the time since the update before."""
        now = time.perf_counter()
        seconds, waited = now - self._before, self._waited
        self._before, self._waited = now, 0.0
        self.seen += numbers.pop("examples")
        metrics = {name: value.item() for name, value in numbers.items()}
        metrics |= {
            "tokens_per_second": metrics.pop("tokens") / seconds,
            "audio_seconds_per_second": metrics.pop("audio") / seconds,
            "seconds": seconds,
            "mfu": self._flops / seconds / self._peak if self._peak else None,
            "data_wait": min(waited / seconds, 1.0),
            "examples": int(self.seen.sum()),
            "time": time.time(),
        }
        for i, name in enumerate(self._names):
            metrics[f"examples/{name}"] = int(self.seen[i])
            if self._sizes:
                metrics[f"epoch/{name}"] = self.seen[i] / self._sizes[i]
        return metrics
