"""The fields that a config.json may have, and their check.

A table maps a field's name to the values that we follow, the rule in words and its default; any
field that no table names is refused, but for bookkeeping: what begins with _ or unsloth_.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import math
from typing import Any, NoReturn

from melllm_jax.errors import Mistake

RopeScalings = Mapping[str, tuple[str, ...]]  # a scaling of rotary positions → its own fields
BOOKKEEPING_PREFIXES = ("_", "unsloth_")
UNKNOWN_FIELD = "no rule knows this field: take it out of the file if it changes no result"
REQUIRED = object()  # the default of a field that a file must say itself


@dataclasses.dataclass(frozen=True)
class Field:
    """What one field of a foreign config may be."""

    accepts: Callable[[Any], bool]
    rule: str  # the same in words
    default: Any = None  # what the field's absence means


def _show_value(value: Any) -> str:
    """A value for a message, 60 letters at most: a word as it is, all else as JSON has it.

    So 3 and "3" differ.
    """
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value[:60]
    return json.dumps(value)[:60]


def refuse_field(where: str, name: str, value: Any, rule: str) -> NoReturn:
    """Raises Mistake that names the file, the field, its value and the rule."""
    raise Mistake(f"{where}: {name}={_show_value(value)}: {rule}")


def is_real(x: Any) -> bool:
    """Whether a value of a JSON file is a finite number; true and false are none."""
    return type(x) in (int, float) and math.isfinite(x)


def size_field(default: Any = None, least: int = 1) -> Field:
    """A count; null where its default is None."""
    accepts = lambda x: type(x) is int and x >= least or x is default is None
    return Field(accepts, f"must be a whole number of {least} or more", default)


def sizes_field(*default: int) -> Field:
    """A list of counts."""
    accepts = lambda x: isinstance(x, list) and all(type(y) is int and y > 0 for y in x)
    return Field(accepts, "must be a list of whole numbers of 1 or more", list(default))


def number_field(default: Any = None, most: float = math.inf) -> Field:
    """A positive number; null where its default is None."""
    accepts = lambda x: is_real(x) and 0 < x <= most or x is default is None
    rule = "must be a number above 0" + (f" and at most {most:g}" if most < math.inf else "")
    return Field(accepts, rule, default)


def only_field(*options: Any, default: Any = None) -> Field:
    """One of the values that we have code for; the first is the default unless another is said."""
    shown = " or ".join("absent" if x is None else _show_value(x) for x in options)
    accepts = lambda x: any(type(x) is type(option) and x == option for option in options)
    return Field(accepts, f"must be {shown}", options[0] if default is None else default)


def ignored_fields(names: str) -> dict[str, Field]:
    """Fields that leave the forward pass alone."""
    return dict.fromkeys(names.split(), Field(lambda _: True, ""))


def neutral_fields(names: str, *options: Any) -> dict[str, Field]:
    """Fields that we follow where they change nothing, and nowhere else."""
    return dict.fromkeys(names.split(), only_field(*options))


FLAG = Field(lambda x: type(x) is bool, "must be true or false", False)
OBJECT = Field(lambda x: x is None or isinstance(x, Mapping), "must be an object of fields")
REQUIRED_OBJECT = dataclasses.replace(
    OBJECT, accepts=lambda x: isinstance(x, Mapping), default=REQUIRED
)
FRACTION = Field(lambda x: is_real(x) and 0 <= x < 1, "must lie in [0, 1)", REQUIRED)
FACTORS = Field(
    lambda x: x is None or isinstance(x, list) and all(is_real(y) and y > 0 for y in x),
    "must be a list of numbers above 0",
)

UNQUANTISED = Field(
    lambda x: x is None, "must be absent: import the model as it was before it was quantised"
)
FULL_ATTENTION = Field(  # Phi and Llama do not read it: a window, if any, is of every layer
    lambda x: x is None or isinstance(x, list) and all(y == "full_attention" for y in x),
    "must be full_attention in every layer",
)

# Training alone: nothing of it is carried over, so a run trained on says its own dropout.
TRAINING = ignored_fields(
    "attention_dropout embd_pdrop resid_pdrop initializer_range gradient_checkpointing"
)
# Generation: the tokenizer has the ids of its tokens, and what decodes has its own settings.
GENERATION = ignored_fields(
    """use_cache bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores suppress_tokens
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty begin_suppress_tokens"""
)
# Bookkeeping: names, versions, the dtype (which the tensors say themselves), forms of output, and
# settings of transformers' base class that no model here reads.
BOOKKEEPING = ignored_fields(
    """_name_or_path _commit_hash _attn_implementation _attn_implementation_autoset architectures
    auto_map model_type transformers_version torch_dtype dtype return_dict output_hidden_states
    output_attentions id2label label2id num_labels problem_type chunk_size_feed_forward is_decoder
    is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    finetuning_task task_specific_params tokenizer_class prefix torchscript tf_legacy_loss
    use_bfloat16 pruned_heads"""
)
COMMON = {**TRAINING, **GENERATION, **BOOKKEEPING}


def read_fields(
    tree: Mapping[str, Any], known: Mapping[str, Field], where: str, path: str = ""
) -> dict[str, Any]:
    """The values of the fields `known`, defaults filled in. Raises Mistake for any other field."""
    path = f"{path}." if path else ""
    for name in tree:
        if name not in known and not name.startswith(BOOKKEEPING_PREFIXES):
            refuse_field(where, f"{path}{name}", tree[name], UNKNOWN_FIELD)
    values = {name: tree.get(name, field.default) for name, field in known.items()}
    for name, value in values.items():
        if value is REQUIRED:
            raise Mistake(f"{where}: {path}{name} is missing: {known[name].rule}")
        if not known[name].accepts(value):
            refuse_field(where, f"{path}{name}", value, known[name].rule)
    return values
