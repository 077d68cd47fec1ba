"""Tokens that a run needs and a model's vocabulary lacks: for sound, and of a template.

At the positions of a clip the front end's output takes the place of the id's embedding, so that any
row serves that stands for no text: its number is all that is used. The special tokens of a template
get rows of their own, which the tokenizer that the run keeps then names.
"""

import dataclasses

from etils import epath

from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.prompt import named_placeholder, placeholder_id, template_specials
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.model import ModelSpec
from melllm_jax.config.run import Run
from melllm_jax.convert.hf_config import reader
from melllm_jax.errors import Mistake
from melllm_jax.json_text import read_object

ROWS = 64  # a vocabulary that grows becomes a multiple of this, which meshes divide


def give_placeholder(run: Run, tokenizer: Tokenizer) -> Run:
    """`run` with `text.placeholder` filled in where it hears and its tokenizer has no such token.

    The id is the one that the config of the imported model names, or the first row past the
    tokenizer's ids; where there is none the vocabulary grows to the next multiple of 64. Raises
    Mistake where `text.placeholder` lies beyond the vocabulary.
    """
    v, text = run.model.v, run.text
    if text.placeholder >= v:
        raise Mistake(f"text.placeholder={text.placeholder}: must lie below model.v={v}")
    if not run.has_sound or text.placeholder >= 0 or named_placeholder(tokenizer) is not None:
        return run
    chosen = _config_id(run.init.path) if run.init.path else None
    if chosen is None or chosen >= v:
        chosen = tokenizer.size
    run = dataclasses.replace(run, text=dataclasses.replace(text, placeholder=chosen))
    if chosen < v:
        return run
    return dataclasses.replace(run, model=dataclasses.replace(run.model, v=_rows_for(chosen)))


def add_specials(run: Run, tokenizer: Tokenizer) -> tuple[Run, Tokenizer]:
    """Both with the special tokens that the run's template needs, where `text.missing` says so.

    The vocabulary grows for those that the model has no row for. Raises Mistake where the
    tokenizer takes no new tokens.
    """
    lacking = [x for x in template_specials(run.text) if x not in tokenizer.specials]
    if run.text.missing == "refused" or not lacking:
        return run, tokenizer
    tokenizer = tokenizer.with_specials(lacking)
    if tokenizer.size <= run.model.v:
        return run, tokenizer
    model = dataclasses.replace(run.model, v=_rows_for(tokenizer.size - 1))
    return dataclasses.replace(run, model=model), tokenizer


def grown_vocabulary(run: Run, tokenizer: Tokenizer) -> int:
    """Tokens of a run whose vocabulary grew for its template or its sound; 0 where it did not."""
    v, last = run.model.v, run.text.placeholder
    if run.text.missing == "added":
        last = max(last, tokenizer.size - 1)
    return v if last >= 0 and v == _rows_for(last) else 0


def _rows_for(last: int) -> int:
    """Tokens of a vocabulary that grows to hold an id."""
    return -(-(last + 1) // ROWS) * ROWS


def stored_id(folder: str, spec: ModelSpec) -> int:
    """The placeholder of the run or import in `folder`. Raises Mistake where it has none."""
    if spec.text.placeholder < 0 and (named := _config_id(folder)) is not None:
        return named
    return placeholder_id(load_tokenizer(spec.text.tokenizer), spec.text)


def _config_id(folder: str) -> int | None:
    """The placeholder that the imported config.json in a folder of ours names, if any."""
    path = epath.Path(folder) / run_folder.TOKENIZER / "config.json"
    return reader.audio_token_id(read_object(path)) if path.exists() else None
