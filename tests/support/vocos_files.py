"""A small random Vocos in the layout of charactr/vocos-mel-24khz, and what the package makes of it.

`python -m tests.support.vocos_arrays WHEEL` writes the arrays of the package.
"""

import pathlib

import numpy as np
import yaml

from tests.support import phi_files

D, F, L, N_FFT, HOP, M = 16, 24, 2, 32, 8, 6
ARRAYS = pathlib.Path(__file__).parent / "vocos_arrays.npz"
BINS = N_FFT // 2 + 1


def tree(d=D, f=F, l=L, n_fft=N_FFT, hop=HOP, m=M, padding="center"):
    """The config.yaml, which names classes of the package and their arguments."""
    features = {"sample_rate": 24_000, "n_fft": n_fft, "hop_length": hop, "n_mels": m}
    sizes = {"input_channels": m, "dim": d, "intermediate_dim": f, "num_layers": l}
    head = {"dim": d, "n_fft": n_fft, "hop_length": hop, "padding": padding}
    return {
        "feature_extractor": {
            "class_path": "vocos.feature_extractors.MelSpectrogramFeatures",
            "init_args": {**features, "padding": "center"},
        },
        "backbone": {"class_path": "vocos.models.VocosBackbone", "init_args": sizes},
        "head": {"class_path": "vocos.heads.ISTFTHead", "init_args": head},
    }


def shapes(d=D, f=F, l=L, n_fft=N_FFT, m=M):
    """Every tensor that is read, by the package's name."""
    found = {"backbone.embed.weight": (d, m, 7), "backbone.embed.bias": (d,)}
    norms = ["backbone.norm", *(f"backbone.convnext.{i}.norm" for i in range(l))]
    norms.append("backbone.final_layer_norm")
    found |= {f"{norm}.{part}": (d,) for norm in norms for part in ("weight", "bias")}
    for i in range(l):
        block = f"backbone.convnext.{i}."
        found |= {f"{block}dwconv.weight": (d, 1, 7), f"{block}dwconv.bias": (d,)}
        found |= {f"{block}pwconv1.weight": (f, d), f"{block}pwconv1.bias": (f,)}
        found |= {f"{block}pwconv2.weight": (d, f), f"{block}pwconv2.bias": (d,)}
        found[f"{block}gamma"] = (d,)
    return found | {"head.out.weight": (n_fft + 2, d), "head.out.bias": (n_fft + 2,)}


def tensors(**sizes):
    """Random tensors by name: norms and gains about 1, biases about 0."""
    rng, found = np.random.default_rng(0), {}
    for name, shape in shapes(**sizes).items():
        rest = 1.0 if name.endswith(("norm.weight", "gamma")) else 0.0
        spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
        found[name] = (rest + spread * rng.standard_normal(shape)).astype(np.float32)
    return found


def mels():
    """Two rows of eleven frames [b m f], as the package takes them."""
    return np.random.default_rng(1).standard_normal((2, M, 11)).astype(np.float32)


def write(folder, config=None, named=None, **sizes):
    """The checkpoint's folder, its torch file turned into safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or tree(**sizes)))
    constants = {"head.istft.window": np.zeros(sizes.get("n_fft", N_FFT), np.float32)}
    constants["feature_extractor.mel_spec.spectrogram.window"] = constants["head.istft.window"]
    sizes = {name: x for name, x in sizes.items() if name not in ("hop", "padding")}
    phi_files.save(folder / "model.safetensors", named or {**tensors(**sizes), **constants})
    return folder
