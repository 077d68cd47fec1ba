"""One of two processes of four devices: python -m tests.support.worker ADDRESS NUMBER FOLDER.

Writes loss and gradients of every split of the eight devices to FOLDER/SPLIT.npz.
"""

import pathlib
import sys

import jax

from melllm_jax.batch import Batch
from tests.support import models


def main(address: str, number: int, folder: pathlib.Path) -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(address, 2, number)
    # Imported once the processes know of each other: it asks for their devices.
    from jax.experimental import multihost_utils  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
    mine = slice(4 * number, 4 * number + 4)
    rows = Batch(*[x[mine] for x in models.speech_rows(8, 32)])
    for split in models.SPLITS:
        with models.split_as(split):
            loss, grads = models.graded(models.run(), rows)
        whole = {k: multihost_utils.process_allgather(x, tiled=True) for k, x in grads.items()}
        if number == 0:
            np.savez(folder / f"{split}.npz", loss=jax.device_get(loss), **whole)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
