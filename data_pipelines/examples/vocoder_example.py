"""Crops of sound for a vocoder: one of each utterance that is drawn, cut at a random place."""

import numpy as np

from data_pipelines.audio.spec_augment import RandomStreams
from data_pipelines.corpora.corpus import load_utterance_sound
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import TOO_SHORT, TRANSFER_DTYPES, check_longest
from data_pipelines.examples.wave_augment import NO_EFFECTS, Effects
from data_pipelines.reject import MALFORMED, Reject, Unusable
from melllm_jax.config.vocoder_run import VocoderRun


class VocoderExampleMaker:
    """Makes the crops of one run; `effects` are those of run.data.augment, for training."""

    def __init__(self, run: VocoderRun, effects: Effects = NO_EFFECTS) -> None:
        self._run, self._effects = run, effects

    def train(
        self, drawn: tuple[int, Utterance], rng: np.random.Generator
    ) -> dict[str, np.ndarray] | Reject[int]:
        """Columns [t ...] of (index of its corpus, utterance): a crop of data.t frames.

        `patches` hold the samples of each frame, which `rng` cuts out of the sound after the
        effects. Sound that is shorter is filled up with zeros: `frames`, `clips` and `loss_weight`
        are 1 where a frame has sound and 0 behind it. `tokens` mean nothing.
        """
        source, utterance = drawn
        try:
            crop = self._crop(utterance, rng)
        except Unusable as error:
            return Reject(source, utterance.id, error.reason, str(error))
        t, hop = self._run.data.t, self._run.mel.hop
        patches = np.zeros((t, hop), TRANSFER_DTYPES[self._run.data.wire])
        patches.reshape(-1)[: crop.size] = crop
        real = (np.arange(t) < -(-crop.size // hop)).astype(np.int32)
        return {
            "tokens": np.zeros(t, np.int32),
            "patches": patches,
            "frames": real,
            "clips": real,
            "loss_weight": real.astype(np.float32),
            "sources": np.full(t, source, np.int32),
        }

    def _crop(self, utterance: Utterance, rng: np.random.Generator) -> np.ndarray:
        """At most data.t frames of one of the utterance's clips. Raises Unusable."""
        if utterance.flaw:
            raise Unusable(MALFORMED, utterance.flaw)
        if not utterance.clips:
            raise Unusable(MALFORMED, f"{utterance.id}: has no sound")
        draws, longest = RandomStreams(rng), self._run.data.longest
        place = draws["crop"]
        clip = utterance.clips[int(place.integers(len(utterance.clips)))]
        check_longest(clip.id, clip.duration, longest)
        sound = load_utterance_sound(clip)
        check_longest(clip.id, sound.seconds, longest)
        wave = sound.at(self._run.mel.rate).changed(lambda x: self._effects(x, draws)).wave
        if not wave.size:
            raise Unusable(TOO_SHORT, f"{clip.id}: audio of 0 samples")
        width = self._run.data.t * self._run.mel.hop
        start = int(place.integers(max(wave.size - width, 0), endpoint=True))
        return wave[start : start + width]
