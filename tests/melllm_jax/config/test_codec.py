"""Sizes of a codec: the released ones, and those that cannot be."""

import dataclasses

import pytest

from melllm_jax.config.codec import CAUSAL_WAVLM, CodecSpec, Focal, WaveNext
from melllm_jax.errors import Mistake


def test_a_chunk_of_the_released_sizes_is_80_ms_of_50_codes_a_second():
    spec = CodecSpec()
    assert (spec.wavlm.hop, spec.wavlm.chunk, spec.refined) == (320, 4, 4)
    assert (spec.codes, spec.rate) == (4096, 24_000)
    assert spec.compressor.reach(2) == (14, 18, 512)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (Focal, {"widths": ()}, r"focal.widths=\(\): must be positive numbers, 1 as focal.widths"),
        (Focal, {"pasts": (9, 9)}, r"focal.pasts=\(9, 9\): must be positive numbers, 3 as focal"),
        (Focal, {"levels": 0}, "focal.levels=0: must be positive"),
        (Focal, {"growth": -1}, "focal.growth=-1: must be 0 or more"),
        (WaveNext, {"hop": 0}, "wavenext.hop=0: must be positive"),
        (CodecSpec, {"bits": 17}, "codec.bits=17: must be 1 to 16"),
        (CodecSpec, {"refined": 3}, "codec.refined=3: must divide the 4 positions of a chunk of"),
        (
            CodecSpec,
            {"wavlm": dataclasses.replace(CAUSAL_WAVLM, causal=False)},
            "codec.wavlm.causal=False: must be true",
        ),
        (
            CodecSpec,
            {"wavlm": dataclasses.replace(CAUSAL_WAVLM, last_norm=True)},
            "codec.wavlm.last_norm=True: must be false",
        ),
    ],
)
def test_sizes_that_cannot_be_are_named(kind, change, message):
    with pytest.raises(Mistake, match=message):
        kind(**change)
