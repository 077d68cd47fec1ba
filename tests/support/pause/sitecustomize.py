"""Makes the process of a sweep's cell stop, as by SIGSTOP, once it has told of a certain update.

Python imports this by its name where the folder is in PYTHONPATH. A test that stops a cell from
outside may come too late on a busy machine.
"""

import os
import pathlib
import signal
import sys
import time

AFTER = int(os.environ.get("MELLLM_TESTS_PAUSE_AFTER", "0"))

if AFTER and "cell" in sys.orig_argv:
    from melllm_jax.telemetry.metrics_writer import MetricsWriter

    write = MetricsWriter.write

    def write_and_pause(self: MetricsWriter, step: int, metrics: dict) -> None:
        """Tells of the update; of that one, once a checkpoint before it is whole, and stops."""
        if step != AFTER:
            write(self, step, metrics)
            return
        checkpoints = pathlib.Path(self._path).parent / "checkpoints"
        while not any(path.name.isdigit() for path in checkpoints.glob("*")):
            time.sleep(0.01)
        write(self, step, metrics)
        os.kill(os.getpid(), signal.SIGSTOP)

    MetricsWriter.write = write_and_pause
