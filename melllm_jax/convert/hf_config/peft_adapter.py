"""Reads PEFT's adapter_config.json: which matrices of each layer LoRA is added to, and how.

Ours stands beside all matrices of every layer with one rank and one scale. Such an adapter can
be kept; any other choice of matrices, ranks and scales, and DoRA, can be merged.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NoReturn

from melllm_jax.config.model import Lora
from melllm_jax.convert.hf_config.fields import read_fields, refuse_field
from melllm_jax.convert.hf_config.peft_fields import PEFT
from melllm_jax.errors import Mistake

# Modules of each layer that LoRA must leave alone.
OTHER_MODULES = (
    "self_attn",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "mlp",
    "mlp.act_fn",
    "mlp.activation_fn",
    "input_layernorm",
    "post_attention_layernorm",
)
WHERE = "adapter_config.json"
MERGE = "--lora merge follows any"


@dataclasses.dataclass(frozen=True)
class MatrixAdapter:
    """What is added to one matrix: scale · B · A, of rank r."""

    r: int
    scale: float
    dora: bool = False  # whether each row of the sum is then given a length of its own


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    """An adapter as its config describes it."""

    fields: Mapping[str, Any]  # as read, defaults filled in
    layers: int
    modules: tuple[str, ...]  # of each layer, that LoRA may stand beside: "mlp.down_proj"
    matrices: Mapping[str, MatrixAdapter]  # by module: "model.layers.0.mlp.down_proj"

    def lora(self) -> Lora:
        """The same as our LoRA. Raises Mistake, naming the field, where ours cannot be that."""
        if self.fields["use_dora"]:
            self._refuse("use_dora", "must be false or absent to be kept")
        for i in range(self.layers):
            if any(f"model.layers.{i}.{module}" not in self.matrices for module in self.modules):
                targets = ", ".join(lora_targets(self.modules))
                listed = isinstance(self.fields["target_modules"], list)
                rule = f"must be {targets}" if listed else f"must match just {targets} of layer {i}"
                self._refuse("target_modules", f"{rule} to be kept")
        first, *others = self.matrices.values()
        for name, same in (
            ("rank_pattern", all(x.r == first.r for x in others)),
            ("alpha_pattern", all(math.isclose(x.scale, first.scale) for x in others)),
        ):
            if not same:
                self._refuse(name, "must leave all matrices one rank and one scale to be kept")
        alpha = float(self.fields["lora_alpha"])
        if first.scale != alpha / first.r:
            alpha = first.scale * first.r
        return Lora(first.r, alpha, float(self.fields["lora_dropout"]))

    def _refuse(self, name: str, rule: str) -> NoReturn:
        refuse_field(WHERE, name, self.fields[name], f"{rule}: {MERGE}")


def lora_targets(modules: Sequence[str]) -> list[str]:
    """PEFT's target_modules for these modules of a layer."""
    return [module.split(".")[1] for module in modules]


def parse_adapter(tree: Mapping[str, Any], layers: int, modules: tuple[str, ...]) -> PeftAdapter:
    """What an adapter_config.json says of a model of so many layers. Raises Mistake.

    `modules` are those of a layer that LoRA may stand beside.
    """
    fields = read_fields(tree, PEFT, WHERE)
    found: dict[str, MatrixAdapter] = {}
    for module in _matched_modules(fields["target_modules"], layers, modules):
        r = int(_by_pattern(fields, "rank_pattern", module, fields["r"]))
        alpha = float(_by_pattern(fields, "alpha_pattern", module, fields["lora_alpha"]))
        scale = alpha / (math.sqrt(r) if fields["use_rslora"] else r)
        found[module] = MatrixAdapter(r, scale, bool(fields["use_dora"]))
    if not found:
        targets = ", ".join(lora_targets(modules))
        refuse_field(
            WHERE, "target_modules", fields["target_modules"], f"must name some of {targets}"
        )
    return PeftAdapter(fields, layers, modules, found)


def check_lora_pattern(
    pattern: str, prefix: str, layers: int, modules: Sequence[str], where: str, name: str
) -> None:
    """Check that a regular expression, matched as PEFT does, names just these modules."""
    match = _compile(pattern, where, name).fullmatch
    for i in range(layers):
        matched = [x for x in (*modules, *OTHER_MODULES) if match(f"{prefix}{i}.{x}")]
        if matched != list(modules):
            rule = f"must match just {', '.join(lora_targets(modules))} of layer {i}"
            refuse_field(where, name, pattern, rule)


def _matched_modules(targets: list[Any] | str, layers: int, modules: tuple[str, ...]) -> list[str]:
    """The modules that `target_modules` names, as PEFT understands it."""
    names = [(i, x, f"model.layers.{i}.{x}") for i in range(layers) for x in modules]
    if isinstance(targets, list):
        suffixes = tuple(f".{x}" for x in targets)
        return [name for _, _, name in names if f".{name}".endswith(suffixes)]
    if targets.lower() == "all-linear":
        return [name for _, _, name in names]
    match = _compile(targets, WHERE, "target_modules").fullmatch
    for i in range(layers):
        if any(match(f"model.layers.{i}.{x}") for x in OTHER_MODULES):
            rule = f"must match just {', '.join(lora_targets(modules))} of layer {i}"
            refuse_field(WHERE, "target_modules", targets, rule)
    return [name for _, _, name in names if match(name)]


def _by_pattern(fields: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    """The value of the first pattern that ends a module's name, as PEFT looks for it."""
    for pattern, value in (fields[name] or {}).items():
        if _compile(rf"(.*\.)?({pattern})$", WHERE, name).match(module):
            return value
    return default


def _compile(pattern: str, where: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise Mistake(
            f"{where}: {name}={pattern[:60]}: is no regular expression: {error}"
        ) from error
