"""Writes what the package vocos 0.1.0 makes of `vocos_files`, for tests without that package.

    python -m tests.support.vocos_arrays vocos-0.1.0-py3-none-any.whl

The wheel is not installed: what it needs of torchaudio and encodec, which no part of this uses, is
stood in for.
"""

import sys
import types

import numpy as np
import torch

from tests.support import vocos_files


def main(wheel: str) -> None:
    """Checks names and shapes of the tensors too: the package loads them strictly."""
    names = ("torchaudio", "torchaudio.functional", "torchaudio.functional.functional", "encodec")
    sys.modules |= {name: types.ModuleType(name) for name in names}
    sys.modules[names[2]]._hz_to_mel = sys.modules[names[2]]._mel_to_hz = None
    sys.modules["encodec"].EncodecModel = None
    sys.path.insert(0, wheel)
    from vocos.heads import ISTFTHead  # noqa: PLC0415 found in the wheel
    from vocos.models import VocosBackbone  # noqa: PLC0415

    state = {name: torch.tensor(x) for name, x in vocos_files.tensors().items()}
    found = {}
    for padding in ("center", "same"):
        config = vocos_files.tree(padding=padding)
        backbone = VocosBackbone(**config["backbone"]["init_args"])
        head = ISTFTHead(**config["head"]["init_args"])
        for module, prefix in ((backbone, "backbone."), (head, "head.")):
            own = {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
            if module is head:
                own["istft.window"] = head.istft.window
            module.load_state_dict(own)
        with torch.no_grad():
            found[padding] = head(backbone(torch.tensor(vocos_files.mels()))).numpy()
    np.savez_compressed(vocos_files.ARRAYS, **found)


if __name__ == "__main__":
    main(sys.argv[1])
