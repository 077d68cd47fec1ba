"""Reads from generation_config.json which tokens stand around and in a Whisper's transcript.

They are those of transformers 5.24's `generate` without time stamps (`_retrieve_init_tokens` and
`_retrieve_logit_processors` in its generation_whisper.py). Where the file is missing config.json
says them, and what it does not say is as OpenAI's vocabularies have it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from melllm_jax.config.whisper import TranscriptRules
from melllm_jax.convert.hf_config.fields import Field, read_fields, refuse_field

_is_id = lambda x: type(x) is int and x >= 0
_ID = Field(lambda x: x is None or _is_id(x), "must be an id")
_IDS = Field(lambda x: x is None or isinstance(x, list) and all(map(_is_id, x)), "must be ids")
_FORCED = Field(
    lambda x: x is None or isinstance(x, list) and all(map(_is_forced, enumerate(x, 1))),
    "must be pairs of place and id, of the places from 1 on",
)
_ID_MAP = Field(
    lambda x: x is None or isinstance(x, Mapping) and all(map(_is_id, x.values())),
    "must be ids by name",
)
_NAME = Field(lambda x: x is None or isinstance(x, str), "must be a name")
# What config.json may say as well; generation_config.json, where it is, says all of it.
FALLBACK_FIELDS = {
    "decoder_start_token_id": Field(_is_id, "must be an id", 50257),
    "eos_token_id": Field(
        lambda x: _is_id(x) or isinstance(x, list) and len(x) > 0 and all(map(_is_id, x)),
        "must be an id or several",
        50256,
    ),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "forced_decoder_ids": _FORCED,
}
_FIELDS = FALLBACK_FIELDS | {
    "max_length": Field(lambda x: x is None or type(x) is int and x > 0, "must be a number"),
    "no_timestamps_token_id": _ID,
    "lang_to_id": _ID_MAP,
    "task_to_id": _ID_MAP,
    "language": _NAME,
    "task": _NAME,
}
# Of OpenAI's vocabularies by their size: languages, "transcribe", "no time stamps", and what is not
# the first token: a blank, and the end.
_PUBLISHED: Mapping[int, tuple[range, tuple[int, ...], int, tuple[int, int]]] = {
    51864: (range(0), (), 50362, (220, 50256)),
    51865: (range(50259, 50358), (50359,), 50363, (220, 50257)),
    51866: (range(50259, 50359), (50360,), 50364, (220, 50257)),
}


def transcript_rules(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, where: str
) -> TranscriptRules:
    """The tokens around a transcript, by `config`, whose fields are read, and `generation`.

    `where` names config.json. Raises Mistake for what we cannot follow.
    """
    if generation is None:
        return _config_rules(config)
    where = where.replace("config.json", "generation_config.json")
    known = {name: generation[name] for name in _FIELDS if name in generation}
    for name in ("decoder_start_token_id", "eos_token_id", "forced_decoder_ids"):
        known.setdefault(name, config[name])
    tree = read_fields(known, _FIELDS, where)
    prompt, languages = _prompt(tree, where)
    silent = tree["no_timestamps_token_id"]
    if silent is not None and prompt[-1] != silent:
        prompt.append(silent)
    return _rules(config, tree, prompt, languages, tree["max_length"])


def _config_rules(config: Mapping[str, Any]) -> TranscriptRules:
    """The rules where there is config.json alone."""
    prompt, languages = _forced(config), []
    published = _PUBLISHED.get(config["vocab_size"])
    if published and len(prompt) == 1:
        named, task, silent, first = published
        prompt, languages = [*prompt, *task, silent], list(named)
        if config["begin_suppress_tokens"] is None:
            config = {**config, "begin_suppress_tokens": first}
    return _rules(config, config, prompt, languages, None)


def _rules(
    config: Mapping[str, Any],
    tree: Mapping[str, Any],
    prompt: Sequence[int],
    languages: Sequence[int],
    most: int | None,
) -> TranscriptRules:
    """The rules that `tree` says; as in transformers the prompt does not count in `most` tokens."""
    ends, positions = tree["eos_token_id"], config["max_target_positions"]
    longest = positions if most is None else most + len(prompt) + bool(languages)
    return TranscriptRules(
        prompt=tuple(prompt),
        ends=tuple(ends) if isinstance(ends, list) else (ends,),
        languages=tuple(languages),
        suppressed=tuple(tree["suppress_tokens"] or ()),
        suppressed_first=tuple(tree["begin_suppress_tokens"] or ()),
        longest=min(longest, positions),
    )


def _prompt(tree: Mapping[str, Any], where: str) -> tuple[list[int], list[int]]:
    """The prompt without a language that is detected, and the languages to detect among."""
    languages = tree["lang_to_id"]
    every = [] if languages is None else sorted(languages.values())
    if tree["language"] is None and tree["task"] is None:
        forced = tree["forced_decoder_ids"]
        said = bool(forced) and forced[0][1] is not None
        return _forced(tree), [] if said else every
    prompt, task = [tree["decoder_start_token_id"]], tree["task"]
    if tree["language"] is not None:
        prompt.append(_named(languages, f"<|{tree['language'].strip('<|>')}|>", "language", where))
        every = []
        task = task or ("transcribe" if tree["task_to_id"] else None)
    if task is not None:
        prompt.append(_named(tree["task_to_id"], task, "task", where))
    return prompt, every


def _forced(tree: Mapping[str, Any]) -> list[int]:
    """The start and the ids that are forced after it; null is a language to be detected."""
    ids = [i for _, i in tree["forced_decoder_ids"] or () if i is not None]
    return [tree["decoder_start_token_id"], *ids]


def _named(ids: Mapping[str, int] | None, name: str, field: str, where: str) -> int:
    if not ids or name not in ids:
        known = ", ".join(sorted(ids or ())[:4]) or "none"
        refuse_field(where, field, name, f"must be one that the file has an id for: {known}")
    return ids[name]


def _is_forced(numbered: tuple[int, Any]) -> bool:
    place, pair = numbered
    pairs = isinstance(pair, list) and len(pair) == 2 and pair[0] == place
    return pairs and (pair[1] is None or _is_id(pair[1]))
