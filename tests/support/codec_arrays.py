"""Writes what the package focalcodec 0.0.2 makes of `codec_files`, for tests without that package.

    python -m tests.support.codec_arrays FOLDER

FOLDER has the package's source, as https://github.com/lucadellalib/focalcodec has it: it is not
installed. Names and shapes of the tensors are checked too: the package loads them strictly.
"""

import importlib
import sys

import numpy as np
import torch

from tests.support import codec_files


def main(folder: str) -> None:
    """Features, latents, units, codes, features of the codes and sound, of each style."""
    sys.path.insert(0, folder)
    theirs = importlib.import_module("focalcodec").FocalCodec
    found = {}
    for style in codec_files.STYLES:
        codec = theirs(**codec_files.tree(style)).eval()
        state = {name: torch.tensor(x) for name, x in codec_files.tensors(style).items()}
        codec.load_state_dict(state)
        with torch.no_grad():
            made = {"features": codec.sig_to_feats(torch.tensor(codec_files.waves()))}
            made["latents"] = codec.compressor(made["features"])[0]
            made["units"] = codec.feats_to_lats(made["features"])
            made["ids"] = codec.lats_to_toks(made["units"])
            codes = codec.toks_to_codes(made["ids"])
            made["decoded"] = codec.codes_to_qfeats(codes)
            made["sound"] = codec.feats_to_sig(made["decoded"])
            # The last of these chunks is not full: zeros stand for what it lacks.
            made["shorter"] = codec.codes_to_qfeats(codes[:, :-2])
        found |= {f"{style} {name}": x.numpy() for name, x in made.items()}
    np.savez_compressed(codec_files.ARRAYS, **found)


if __name__ == "__main__":
    main(sys.argv[1])
