"""The chat template that a tokenizer's files hold, rendered by Jinja2 as transformers renders it.

A template is a program of whoever made the model: it runs in Jinja2's sandbox, and sees nothing but
the conversation and the names of special tokens.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
from typing import Any, NoReturn

from etils import epath
import jinja2
from jinja2 import ext, nodes, parser, sandbox

from data_pipelines.reject import first_line
from melllm_jax.errors import Mistake
from melllm_jax.json_text import read_object

# Where a template may stand, the one that counts first, and the names of special tokens.
TEMPLATE_FILE, CONFIG_FILE, PROCESSOR_FILE = (
    "chat_template.jinja",
    "tokenizer_config.json",
    "chat_template.json",
)
FILES = (TEMPLATE_FILE, CONFIG_FILE, PROCESSOR_FILE, "special_tokens_map.json")
_CLIP, _REPLY = "\ue000", "\ue001"  # stand for the sound and the transcript: no text has them
_NAMES = {_CLIP: "clip", _REPLY: "reply"}


@dataclasses.dataclass(frozen=True)
class ChatTurns:
    """One exchange as a template writes it, its special tokens as their names."""

    before: str  # up to the clip
    after: str  # from the clip to the transcript
    ending: str  # from the transcript on


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template, and what it may name."""

    path: str  # of the file, for messages
    source: str
    tokens: tuple[tuple[str, str], ...]  # ("eos_token", "<|end|>"), …

    def turns(self, instruction: str) -> ChatTurns:
        """A user's clip and instruction, and the reply. Raises Mistake where it cannot say them."""
        asked = f"{_CLIP}{instruction}"
        before, after = self._split([("user", asked)], _CLIP, add_generation_prompt=True)
        _, ending = self._split([("user", asked), ("assistant", _REPLY)], _REPLY)
        return ChatTurns(before, after, ending)

    def ask(self, question: str, system: str = "") -> str:
        """A user's question, up to where the reply begins; special tokens as their names.

        Raises Mistake where the template cannot say that, as some cannot a system message.
        """
        turns = [("system", system)] * bool(system) + [("user", question)]
        holds = lambda text: question.strip() in text
        return self._render(turns, True, holds, "leaves the question out")

    def render(
        self, turns: Sequence[tuple[str, str]], marks: str, *, add_generation_prompt: bool = False
    ) -> str:
        """The conversation of (role, content) as text.

        Each character of `marks` stands in it once, in their order. Raises Mistake where the
        template does not write it so, or fails.
        """
        in_order = lambda text: "".join(letter for letter in text if letter in marks) == marks
        trouble = f"writes the {_NAMES.get(marks, 'turns')} not just once"
        return self._render(turns, add_generation_prompt, in_order, trouble)

    def _render(
        self,
        turns: Sequence[tuple[str, str]],
        add_generation_prompt: bool,
        accept: Callable[[str], bool],
        trouble: str,
    ) -> str:
        """The conversation, with contents as text or, failing that, as parts.

        Raises Mistake, with what the template says or else `trouble`, where neither is accepted.
        """
        for content in (str, _as_parts):
            messages = [{"role": role, "content": content(text)} for role, text in turns]
            try:
                text = _compile_template(self.source).render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **dict(self.tokens),
                )
            except Exception as error:  # a program of others raises what it likes
                trouble = first_line(error)
                continue
            if accept(text):
                return text
        raise Mistake(f"{self.path}: its chat template cannot be followed: {trouble}")

    def _split(
        self, turns: list[tuple[str, str]], mark: str, *, add_generation_prompt: bool = False
    ) -> tuple[str, str]:
        """The conversation before and after a mark."""
        text = self.render(turns, mark, add_generation_prompt=add_generation_prompt)
        before, after = text.split(mark)
        return before, after


def read_chat_template(folder: epath.Path) -> ChatTemplate | None:
    """The chat template of a tokenizer's folder, if it has one. Raises Mistake for what is none."""
    trees = {
        name: read_object(folder / name) if (folder / name).exists() else {}
        for name in FILES
        if name != TEMPLATE_FILE
    }
    config, processor, names = trees.values()
    tokens = {
        name: text
        for name, value in [*names.items(), *config.items()]
        if name.endswith("_token") and (text := _token_name(value))
    }
    file = folder / TEMPLATE_FILE
    if file.exists():
        return ChatTemplate(
            str(file), file.read_bytes().decode("utf-8-sig"), tuple(sorted(tokens.items()))
        )
    for name, tree in ((CONFIG_FILE, config), (PROCESSOR_FILE, processor)):
        source = tree.get("chat_template")
        if isinstance(source, list):  # several by name
            source = {x.get("name"): x.get("template") for x in source}.get("default")
        if source is not None:
            if not isinstance(source, str):
                raise Mistake(f"{folder / name}: chat_template: must be text")
            return ChatTemplate(str(folder / name), source, tuple(sorted(tokens.items())))
    return None


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _token_name(value: Any) -> str | None:
    """A special token's name, as a config says it: the name, or an object with it."""
    name = value.get("content") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else None


class _Generation(ext.Extension):
    """Accepts the block {% generation %} around replies, which changes nothing of the text."""

    tags = {"generation"}

    def parse(self, source: parser.Parser) -> list[nodes.Node]:
        next(source.stream)
        return source.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=8)
def _compile_template(source: str) -> jinja2.Template:
    """transformers' settings, but for `strftime_now`: a prompt does not depend on the day."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
