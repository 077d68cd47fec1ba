"""Quickstart for speech: a model and a vocoder learn one voice, and say what they never saw."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
import math
import pathlib
import statistics
import time
from typing import Any

from data_pipelines.audio.file_io import decode_sound
from data_pipelines.corpora.corpus import load_utterance_sound, open_corpus
from data_pipelines.examples.asr_example import sound_to_mel
from data_pipelines.prepare.validate import RecordConfig
from data_pipelines.synthetic import synthetic_shards
from data_pipelines.synthetic.grammar import Split
from data_pipelines.text.tokenizer_training import train_sentencepiece
from launch.charts import figures
from launch.evaluation.speech.cepstral_distortion import mel_cepstral_distortion
from launch.runs.fit import fit
from launch.speech.corpus_requests import corpus_requests
from launch.speech.run_speaker import RunSpeaker, SpeakerChoice, open_speaker
from launch.speech.spoken_files import MANIFEST, speak_folder
from launch.terminal.progress_bar import count_progress
from melllm_jax.config.features import Mel
from melllm_jax.config.overrides import override
from melllm_jax.presets import catalog

OWN = ("vocoder", "spoken")  # folders that it makes beside those of quickstart
COUNTS: dict[Split, int] = {"train": 4000, "dev": 50, "test": 50}
SAID = 20  # sentences that are spoken
Timer = Callable[[str], AbstractContextManager[None]]


def run(folder: pathlib.Path, seed: int, timer: Timer) -> None:
    """Makes the corpus, trains both networks, speaks, and says how far that is from the voice.

    What a run before has finished in `folder` is not done again. `timer` names a step.
    """
    began = time.perf_counter()
    data, tokenizer = str(folder / "data"), str(folder / "tokenizer")
    with timer("1/4 speaking a corpus of sentences in one voice"):
        _speak_corpus(data, seed)
        train = open_corpus(data, "train")
        texts = (train[index].text for index in range(len(train)))
        train_sentencepiece(texts, tokenizer, 0, kind="word")
    changes = {"data.sources": [{"path": data}], "seed": seed}
    reader = override(catalog.preset("quickstart_tts"), changes | {"text.tokenizer": tokenizer})
    with timer(f"2/4 training a model to read aloud: {reader.optim.steps} updates"):
        fit(reader, str(folder / "run"))
    vocoder = override(catalog.any_preset("quickstart_vocoder"), changes)
    with timer(f"3/4 training its vocoder: {vocoder.optim.steps} updates"):
        fit(vocoder, str(folder / "vocoder"))
    with timer("4/4 speaking sentences it never saw"):
        told = _speak_test(folder, data)
    print(f"{told}\nall in {time.perf_counter() - began:.0f} s")


def _speak_corpus(data: str, seed: int) -> None:
    if (pathlib.Path(data) / "index.json").exists():
        return
    jobs = synthetic_shards.single_voice_jobs(COUNTS, seed)
    with count_progress(sum(COUNTS.values()), "utterances") as advance:
        config = RecordConfig("flac", Mel())
        synthetic_shards.write_utterances(data, jobs, config, progress=advance)


def _speak_test(folder: pathlib.Path, data: str) -> str:
    """Speaks sentences of the test split, draws one, and says how good they are."""
    spoken = folder / "spoken"
    choice = SpeakerChoice(run=str(folder / "run"), vocoder=str(folder / "vocoder"))
    with open_speaker(choice) as speaker:
        requests = corpus_requests(data, "test", SAID)
        with count_progress(len(requests), "sentences") as advance:
            lines = speak_folder(requests, spoken, speaker.settings, speaker, advance)
        drawn = next(speaker([requests[0].text]))
        figures.draw_speech(
            drawn.spoken.mel,
            drawn.spoken.stops,
            drawn.spoken.text,
            folder / "mel.png",
            drawn.spoken.hop_seconds,
        )
    distortion, floor = _distortions(data, spoken, lines, speaker)
    unended = sum(not line["flags"]["stopped"] for line in lines)
    first = spoken / lines[0]["audio_filepath"]
    return (
        f"{len(lines)} sentences it never saw: {distortion:.1f} dB from the voice's own (median "
        f"mel cepstral distortion), {floor:.1f} dB where the vocoder is given the voice's own "
        f"mel; {unended} did not end by themselves\n"
        f"{first}\n  says: {lines[0]['text']}\n"
        f"picture: {folder / 'mel.png'}\n"
        f"how well it is understood: melllm evaluate --speech {spoken / MANIFEST} --judge WHISPER"
    )


def _distortions(
    data: str, spoken: pathlib.Path, lines: Sequence[Mapping[str, Any]], speaker: RunSpeaker
) -> tuple[float, float]:
    """Medians in dB: of what was spoken, and of the voice's own mel through the vocoder."""
    corpus = open_corpus(data, "test")
    own, copied = [], []
    for index, line in enumerate(lines):
        recording = load_utterance_sound(corpus[index])
        said = decode_sound(str(spoken / line["audio_filepath"]))
        if said.wave.size:
            own.append(mel_cepstral_distortion(said.wave, recording.wave))
        mel = sound_to_mel(recording, speaker.model.mel, line["id"])
        copied.append(mel_cepstral_distortion(speaker.vocoder(mel), recording.wave))
    return statistics.median(own or [math.inf]), statistics.median(copied)
