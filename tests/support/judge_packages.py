"""Packages that stand in for torch's judges: their interfaces, and scores made by hand."""

MOS, SIMILARITY = "distillmos 7.1", "Resemblyzer 7.2"
PACKAGES = {
    "torch.py": """
import contextlib
inference_mode = contextlib.nullcontext
from_numpy = lambda wave: wave
""",
    "distillmos.py": """
import os, signal, sys
import numpy, torch
assert "torchaudio" in sys.modules
print("weights loaded")
class ConvTransformerSQAModel:
    def eval(self):
        assert "torchaudio" not in sys.modules
        return self
    def __call__(self, waves):
        peak = waves[0].max()  # of [1, w]
        if peak > 0.95:
            os.kill(os.getpid(), signal.SIGKILL)
        if peak > 0.9:
            sys.exit("out of memory")
        if not peak:
            raise RuntimeError("cannot judge silence\\nat all")
        waves -= 0  # torch writes to it
        return numpy.array([1 + 4 * peak])
""",
    "resemblyzer.py": """
import numpy
class VoiceEncoder:
    def __init__(self, device, verbose):
        assert device == "cpu" and not verbose
    def embed_utterance(self, wave):
        angle = wave.max()
        return numpy.array([numpy.cos(angle), numpy.sin(angle)])
def preprocess_wav(wave, source_sr):
    assert source_sr == 16000
    print("a voice")
    return wave[wave != 0]
""",
}


def write(folder):
    """The packages in a folder that PYTHONPATH is to name."""
    folder.mkdir()
    for name, text in PACKAGES.items():
        (folder / name).write_text(text)
    for installed in (MOS, SIMILARITY):
        name, version = installed.split()
        (folder / f"{name}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / f"{name}-{version}.dist-info/METADATA").write_text(text)
    return folder
