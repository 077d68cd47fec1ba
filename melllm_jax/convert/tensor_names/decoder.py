"""What the tables of all decoders share: rules made of the names of a layer's matrices.

Names are those of transformers' decoders: model.embed_tokens, model.layers, model.norm, lm_head.
"""

from collections.abc import Mapping
import dataclasses

from melllm_jax.config.model import Model
from melllm_jax.convert.weight_map import LAYER, IgnoredTensors, Rule

BLOCK = f"model.layers.{LAYER}."
HEADS, MATRIX = "(n h) d -> d n h", "f d -> d f"
ROTARY_RATES = IgnoredTensors("model.layers.*.rotary_emb.inv_freq", "computed from the config")


@dataclasses.dataclass(frozen=True)
class Projection:
    """A matrix of each layer: our weights in it, and our low-rank addition to it.

    LoRA's A is shared by all outputs of one of our additions. Where several matrices have a part of
    it each, as q, k and v apart do, each of them has a copy of A.
    """

    module: str  # ours: "attn"
    weights: tuple[str, ...]  # ("q", "k", "v")
    patterns: tuple[str, ...]  # theirs → ours, one each
    lora: str  # "qkv_lora"
    a: str  # pattern of A
    b: tuple[str, ...]  # pattern of B, one for each output
    first: int = 0  # which output of the addition the first one is


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """How one kind of checkpoint names its tensors."""

    projections: Mapping[str, Projection]  # by their names: "self_attn.qkv_proj"
    base: str = ""  # what follows a matrix's name where LoRA stands beside it
    prefix: str = "base_model.model."  # of LoRA's names: PEFT's, in files of its own
    adapter: str = ""
    ignored: tuple[IgnoredTensors, ...] = (ROTARY_RATES,)  # tensors that are not read

    def weights(self, model: Model) -> list[Rule]:
        """Rules of all tensors but LoRA's."""
        return decoder_rules(self.projections, model.tied, self.base)

    def lora(self) -> list[Rule]:
        """Rules of LoRA's tensors alone, without the copies of A."""
        return lora_rules(self.projections, self.prefix, self.adapter)

    def lora_copies(self, layers: int) -> dict[str, str]:
        """The copies of A, each with the name of the A that it equals."""
        first: dict[tuple[str, str], str] = {}
        copies = {}
        for name, x in self.projections.items():
            a = f"{self.prefix}{BLOCK}{name}.lora_A{self.adapter}.weight"
            if (original := first.setdefault((x.module, x.lora), a)) != a:
                copies[a] = original
        return {
            a.replace(LAYER, str(i)): original.replace(LAYER, str(i))
            for a, original in copies.items()
            for i in range(layers)
        }

    def lora_pair(self, name: str) -> tuple[str, str] | None:
        """LoRA's A and B that are added to the matrix of that name; None for any other tensor."""
        stem = name.removesuffix(f"{self.base}.weight")
        if stem == name or not stem.endswith(tuple(self.projections)):
            return None
        a, b = (f"{self.prefix}{stem}.lora_{x}{self.adapter}.weight" for x in "AB")
        return a, b


def decoder_rules(projections: Mapping[str, Projection], tied: bool, base: str = "") -> list[Rule]:
    """Embedding, blocks and head; `base` is ".base_layer" where LoRA stands beside the matrices."""
    rules = [
        Rule("model.embed_tokens.weight", ("embed",), ("v d -> v d",)),
        Rule("model.norm.weight", ("norm.scale",), ("d -> d",)),
        layer_rule("input_layernorm.weight", "attn_norm.scale", "d -> d"),
        layer_rule("post_attention_layernorm.weight", "mlp_norm.scale", "d -> d"),
    ]
    for name, x in projections.items():
        ours = tuple(f"stack.blocks.{x.module}.{weight}" for weight in x.weights)
        rules.append(Rule(f"{BLOCK}{name}{base}.weight", ours, x.patterns))
    return rules if tied else [*rules, Rule("lm_head.weight", ("head",), ("v d -> d v",))]


def lora_rules(projections: Mapping[str, Projection], prefix: str, adapter: str) -> list[Rule]:
    """The low-rank additions; PEFT writes an adapter on its own as "base_model.model." and ""."""
    rules = []
    for name, x in projections.items():
        matrix, ours = f"{prefix}{BLOCK}{name}", f"stack.blocks.{x.module}.{x.lora}"
        if x.first == 0:
            rules.append(Rule(f"{matrix}.lora_A{adapter}.weight", (f"{ours}.a",), (x.a,)))
        outs = tuple(f"{ours}.b.{x.first + i}" for i in range(len(x.b)))
        rules.append(Rule(f"{matrix}.lora_B{adapter}.weight", outs, x.b))
    return rules


def layer_rule(theirs: str, ours: str, pattern: str) -> Rule:
    """One tensor of each layer that is one weight of ours."""
    return Rule(f"{BLOCK}{theirs}", (f"stack.blocks.{ours}",), (pattern,))
