"""The table of each layout: what `melllm convert` reads and writes."""

from collections.abc import Mapping

from melllm_jax.convert.tensor_names import llama, phi
from melllm_jax.convert.tensor_names.decoder import TensorNames

TENSOR_NAMES: Mapping[str, TensorNames] = {
    "phi3": phi.PEFT_NAMES,
    "transformers": phi.PEFT_NAMES,
    "microsoft": phi.MICROSOFT_NAMES,
    "llama": llama.LLAMA_NAMES,
    "mistral": llama.LLAMA_NAMES,
    "qwen2": llama.LLAMA_NAMES,
    "qwen3": llama.LLAMA_NAMES,
}
