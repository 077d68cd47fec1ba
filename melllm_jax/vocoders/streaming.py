"""Sound as the frames come: a causal vocoder, chunk by chunk, equal to the whole."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from melllm_jax.errors import Mistake
from melllm_jax.features.stft import hann, overlap_add
from melllm_jax.vocoders.hifi_gan import HifiGanVocoder
from melllm_jax.vocoders.stored_vocoder import Vocoder
from melllm_jax.vocoders.vocos import VocosVocoder

State = tuple[Array, ...]  # what each convolution saw last; of a Vocos, what frames still overlap


class ChunkMemory:
    """What the convolutions of a causal network saw last, in the order in which they ask."""

    def __init__(self, before: State) -> None:
        self._before, self.after = before, list[Array]()

    def extend(self, x_bsc: Float[Array, "b s c"], left: int, right: int) -> Array:
        """`x` after the `left` steps before it: zeros at the beginning."""
        if right:
            raise ValueError("a causal convolution reads nothing later")
        zeros = jnp.pad(x_bsc[:, :0], ((0, 0), (left, 0), (0, 0)))
        before = self._before[len(self.after)] if self._before else zeros
        seen = jnp.concatenate([before, x_bsc], axis=1)
        self.after.append(seen[:, seen.shape[1] - left :])
        return seen


def stream_chunk(
    vocoder: Vocoder, mels_bfm: Float[Array, "b f m"], state: State
) -> tuple[Float[Array, "b w"], State]:
    """The samples that a chunk of frames completes, a hop a frame, and the state after it.

    () is the state before the first chunk. A Vocos's samples come `Vocos.edge` late: so many before
    the first sound are to be dropped, and as many of the state's remain at the end.
    """
    if isinstance(vocoder, HifiGanVocoder):
        memory = ChunkMemory(state)
        wave_bw = vocoder.make_sound(mels_bfm, memory)
        return wave_bw, tuple(memory.after)
    cfg, width = vocoder.cfg, vocoder.cfg.n_fft
    memory = ChunkMemory(state[2:])
    real, imaginary = vocoder.spectra(mels_bfm, memory)
    window = hann(width)[None, None]
    frames_bfw = jnp.fft.irfft(jax.lax.complex(real, imaginary), width, axis=2) * window
    weights_bfw = jnp.broadcast_to(jnp.square(window), (1, *frames_bfw.shape[1:]))
    done, rest = [], []
    for i, x in enumerate((frames_bfw, weights_bfw)):
        total = overlap_add(x, cfg.hop)
        if state:
            late = total.shape[1] - state[i].shape[1]
            total = total + jnp.pad(state[i], ((0, 0), (0, late)))
        whole = x.shape[1] * cfg.hop
        done.append(total[:, :whole])
        rest.append(total[:, whole:])
    return _divided(done[0], done[1]), (*rest, *memory.after)


def stream_sound(vocoder: Vocoder, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Samples [b w] of chunks of frames [b f m] as these come; together, those of all at once.

    Each length of a chunk is compiled once. Raises Mistake for a vocoder that is not causal.
    """
    if not vocoder.cfg.causal:
        raise Mistake("causal=False: this vocoder reads later frames: it makes no sound by chunks")
    run = jax.jit(stream_chunk)
    state: State = ()
    dropped = vocoder.cfg.edge if isinstance(vocoder, VocosVocoder) else 0
    frames = sent = 0
    for mels_bfm in chunks:
        wave_bw, state = run(vocoder, jnp.asarray(mels_bfm), state)
        wave = np.asarray(wave_bw)
        frames += mels_bfm.shape[1]
        cut = min(dropped, wave.shape[1])
        dropped -= cut
        sent += wave.shape[1] - cut
        if cut < wave.shape[1]:
            yield wave[:, cut:]
    if isinstance(vocoder, VocosVocoder) and state:
        left = vocoder.cfg.samples(frames) - sent
        rest = np.asarray(_divided(state[0], state[1]))[:, dropped : dropped + left]
        if rest.size:
            yield rest


def _divided(total: Array, weight: Array) -> Array:
    """Overlapping frames over their windows; 0 where no window reaches."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)
