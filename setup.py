"""Packaging: one distribution of three packages, and what each extra brings."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'"(.+)"', (HERE / "melllm_jax/__init__.py").read_text().split("__version__")[1]
)

EVAL = ["jiwer>=4.0,<5", "regex>=2022.3", "whisper-normalizer>=0.1.12,<0.2"]
DEMO = [*EVAL, "espeakng-loader>=0.2.4", "matplotlib>=3.9"]
NATURAL = ["hibari-tts==0.2.1"]  # its weights are in the wheel: another release is another voice
# Without the judges themselves, distillmos==0.9.1, xls-r-sqa==0.1.0 and Resemblyzer==0.1.4, which
# ask for what does not install or load beside this torch, and which they do not need here (old
# typing, webrtcvad without wheels, torchaudio): they come by a further `pip install --no-deps`.
JUDGE = ["torch>=2.4", "librosa>=0.11,<0.12", "webrtcvad-wheels==2.0.14.post1"]
PARQUET = ["pyarrow>=17"]
TFDS = ["tensorflow-datasets>=4.9.9"]
RUFF = "ruff==0.17.5"
BEAM = ["apache-beam>=2.65"]
DASK = ["apache-beam[dask]>=2.65"]
TEST = [
    *DEMO,
    *DASK,
    *PARQUET,
    *TFDS,
    "beartype>=0.20",
    "librosa>=0.11,<0.12",  # the reference of mel
    "mypy>=1.15",
    "pytest>=8.3",
    "pytest-xdist>=3.8",
    RUFF,
]

setup(
    name="melllm_jax",
    version=VERSION[1],
    description="Encoder-free speech language models in JAX: mel patches straight into an LLM",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["melllm_jax*", "data_pipelines*", "launch*"]),
    package_data={"launch": ["*/*.html", "*/*.css"]},  # templates of pages
    install_requires=[
        # Python 3.11 stops at jax 0.10.2 and flax 0.12.8; 3.12 takes jax 0.12 and flax 0.12.12.
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "array_record>=0.8.1",
        "einops>=0.8",
        "etils[epath]>=1.12",
        "fsspec>=2025.2",  # from then on its stores can create what must not exist yet
        "humanize>=4.9",
        "jaxtyping>=0.3.2,<0.4",
        "jinja2>=3.1",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "psutil>=6",
        "pyyaml>=6",  # manifests of melllm sweep --backend gke
        "rich>=13.9",
        "scipy>=1.14",
        "sentencepiece>=0.2",
        "soundfile>=0.13",
        "soxr>=0.5",
        "tensorboard>=2.19",
        "tokenizers>=0.21",
        "tyro>=1.0.17,<2",
    ],
    extras_require={
        "demo": DEMO,  # melllm quickstart: voices, pictures, scores
        "test": TEST,
        # References for the tests, and what `melllm convert check` holds an import against.
        "parity": [
            "torch==2.13.0",
            "transformers>=5.20,<6",
            "peft>=0.19,<1",
            "lhotse>=1.30,<2",  # needs torch; writes the cuts that an importer reads
        ],
        "hub": ["huggingface_hub>=0.30"],  # names on the hub in place of a folder
        "plan": ["libtpu>=0.0.40"],  # compile for TPU pods on a machine without one
        "plan-gpu": ["jax[cuda12]>=0.10.2,<0.13"],  # the same for GPUs: 5.5 GB
        "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26", RUFF],  # mkdocs serve
        "eval": EVAL,
        "judge": JUDGE,  # melllm evaluate --speech: what DistillMOS and Resemblyzer need
        "natural": NATURAL,  # melllm data speak --voices natural
        "parquet": PARQUET,  # melllm data import --kind parquet
        "tfds": [*TFDS, "tensorflow>=2.18"],  # its stock Audio feature is read by nothing else
        "beam": BEAM,  # melllm prepare, on the cores of this machine; Dataflow: apache-beam[gcp]
        "dask": DASK,  # melllm prepare --runner dask
        "gpu": ["jax[cuda12]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    },
    entry_points={"console_scripts": ["melllm = launch.cli:main"]},
)
