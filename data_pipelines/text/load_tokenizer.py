"""Loads the tokenizer that a path or the word "bytes" names; the file's ending decides the kind."""

from collections.abc import Callable, Mapping

from etils import epath

from data_pipelines.text import chat_template
from data_pipelines.text.byte_tokenizer import ByteTokenizer, read_byte_tokenizer
from data_pipelines.text.json_tokenizer import read_json_tokenizer
from data_pipelines.text.sentencepiece_tokenizer import read_sentencepiece
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax import files
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.errors import Mistake


def load_tokenizer(spec: epath.PathLike) -> Tokenizer:
    """The tokenizer that `spec` names: "bytes", a file, or a folder with such a file.

    A file is `*.model` (SentencePiece, read with the special tokens listed beside it), `*.json`
    (tokenizers) or `*.bytes`; in a folder their name is `tokenizer`, and the first of the three
    counts. Raises Mistake where there is none or it cannot be read.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = files.place(spec)
    if path.is_dir():
        kinds = [path / f"tokenizer{kind}" for kind in _READERS]
        path = next((file for file in kinds if file.exists()), kinds[0])
    if not path.exists():
        raise Mistake(f"text.tokenizer={spec}: is neither bytes nor a tokenizer's file or folder")
    if path.suffix not in _READERS:
        raise Mistake(f"text.tokenizer={spec}: must end in one of {', '.join(_READERS)}")
    try:
        return _READERS[path.suffix](path)
    except Mistake:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise Mistake(f"text.tokenizer={spec}: {path.name} cannot be read: {error}") from error


def tokenizer_name(run: BaseRun) -> str:
    """What `load_tokenizer` is to load for a run: "bytes" where its network reads no text."""
    return run.text.tokenizer if isinstance(run, Run) else "bytes"


def copy_template_files(spec: epath.PathLike, folder: epath.PathLike) -> None:
    """Copies what a chat template is read from, from beside the tokenizer `spec` to `folder`."""
    source, target = epath.Path(spec), epath.Path(folder)
    source = source if source.is_dir() else source.parent
    for name in chat_template.FILES:
        if (source / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((source / name).read_bytes())


_READERS: Mapping[str, Callable[[epath.Path], Tokenizer]] = {
    ".model": read_sentencepiece,
    ".json": read_json_tokenizer,
    ".bytes": read_byte_tokenizer,
}
