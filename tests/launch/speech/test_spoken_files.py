"""Texts into files: names, settings, going on where it stopped, and a full disk."""

import errno
import json

import numpy as np
import pytest
import soundfile

from data_pipelines.audio.sound import Sound
from launch.runtime.folder_claim import FolderClaim
from launch.speech import spoken_files
from launch.speech.speaking_model import SpokenMel
from launch.speech.spoken_files import SpeechRequest, SpokenSound, speak_folder
from melllm_jax.errors import Fault, Mistake

SETTINGS = {"run": "r", "seed": 0}
TEXTS = [SpeechRequest("a", "one"), SpeechRequest("b/c", "two"), SpeechRequest("d", "three")]


class Maker:
    """Sound by hand, that counts the texts that it was asked for."""

    def __init__(self):
        self.said = []

    def __call__(self, texts):
        for text in texts:
            self.said.append(text)
            spoken = SpokenMel(
                text, np.zeros((2, 4), np.float32), np.zeros(1), True, False, 0.5, 0.01
            )
            yield SpokenSound(spoken, np.full(160 * len(text), 0.25, np.float32), 16_000, 1.0, 1.0)


def manifest(folder):
    return [json.loads(line) for line in (folder / "spoken.jsonl").read_text().splitlines()]


def test_every_text_becomes_a_file_and_a_line(tmp_path):
    folder = tmp_path / "out"
    lines = speak_folder(TEXTS, folder, SETTINGS, Maker())
    assert lines == manifest(folder)
    assert [line["id"] for line in lines] == ["a", "b/c", "d"]
    wave, rate = soundfile.read(folder / lines[2]["audio_filepath"])
    assert (rate, len(wave)) == (16_000, 800)
    assert lines[2]["duration"] == 0.05
    assert lines[2]["rtf"] == 20.0
    assert lines[2]["flags"] == {"stopped": True, "broken": False}
    assert all("/" not in line["audio_filepath"] for line in lines)


def test_what_is_finished_is_not_made_again_unless_its_text_changed(tmp_path):
    folder, maker = tmp_path / "out", Maker()
    speak_folder(TEXTS[:2], folder, SETTINGS, maker)
    changed = [SpeechRequest("a", "other"), *TEXTS[1:]]
    lines = speak_folder(changed, folder, SETTINGS, maker)
    assert maker.said == ["one", "two", "other", "three"]
    assert [line["text"] for line in lines] == ["other", "two", "three"]
    (folder / lines[1]["audio_filepath"]).unlink()
    speak_folder(changed, folder, SETTINGS, maker)
    assert maker.said[4:] == ["two"]


def test_a_full_disk_loses_no_finished_file_and_the_same_call_goes_on(tmp_path, monkeypatch):
    folder, maker, write = tmp_path / "out", Maker(), spoken_files.write_sound

    def full(path, sound):
        if sound.spoken.text == "two":
            raise Fault(f"{path}: {OSError(errno.ENOSPC, 'No space left on device').strerror}")
        write(path, sound)

    monkeypatch.setattr(spoken_files, "write_sound", full)
    with pytest.raises(Fault, match="No space left"):
        speak_folder(TEXTS, folder, SETTINGS, maker)
    assert [line["id"] for line in manifest(folder)] == ["a"]
    monkeypatch.setattr(spoken_files, "write_sound", write)
    assert len(speak_folder(TEXTS, folder, SETTINGS, maker)) == 3
    assert maker.said == ["one", "two", "two", "three"]


def test_a_manifest_that_a_kill_tore_and_settings_without_their_folder_are_gone_on_from(tmp_path):
    folder, maker = tmp_path / "out", Maker()
    speak_folder(TEXTS[:2], folder, SETTINGS, maker)
    whole = (folder / "spoken.jsonl").read_bytes()
    (folder / "spoken.jsonl").write_bytes(whole + whole[:20])
    assert len(speak_folder(TEXTS, folder, SETTINGS, maker)) == 3
    assert maker.said == ["one", "two", "three"]
    (folder / "speak.json").write_text("{")
    with pytest.raises(Mistake, match=r"speak.json: is no JSON"):
        speak_folder(TEXTS, folder, SETTINGS, maker)


def test_a_folder_in_which_another_process_speaks_is_refused_and_left_alone(tmp_path):
    folder, maker = tmp_path / "out", Maker()
    with FolderClaim(str(folder)), pytest.raises(Mistake, match="is in use by process"):
        speak_folder(TEXTS, folder, SETTINGS, maker)
    assert not maker.said
    assert len(speak_folder(TEXTS, folder, SETTINGS, maker)) == 3


def test_recordings_and_voice_are_named_beside_what_is_spoken(tmp_path):
    folder = tmp_path / "out"
    own = Sound(np.full(400, 0.5, np.float32), 8000)
    request = SpeechRequest("a", "one", lambda: own, "voice.wav")
    (line,) = speak_folder([request], folder, SETTINGS, Maker())
    wave, rate = soundfile.read(folder / line["reference"])
    assert (len(wave), rate) == (400, 8000)
    assert line["voice"].endswith("/voice.wav")


def test_mistakes_are_told_before_anything_is_written(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(Mistake, match="id='a': comes twice"):
        speak_folder([TEXTS[0]] * 2, folder, SETTINGS, Maker())
    assert not folder.exists()
    speak_folder(TEXTS, folder, SETTINGS, Maker())
    with pytest.raises(Mistake, match="holds speech of seed=0, not 1: give another folder"):
        speak_folder(TEXTS, folder, SETTINGS | {"seed": 1}, Maker())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Mistake, match="is no folder of speech, and not empty"):
        speak_folder(TEXTS, tmp_path, SETTINGS, Maker())
