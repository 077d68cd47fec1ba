"""The fields of adapter_config.json, PEFT's, and of Microsoft's speech_lora."""

from collections.abc import Mapping
import dataclasses

from melllm_jax.convert.hf_config.fields import (
    FLAG,
    FRACTION,
    REQUIRED,
    Field,
    ignored_fields,
    is_real,
    neutral_fields,
    number_field,
    only_field,
    size_field,
)

REGEX = Field(lambda x: isinstance(x, str), "must be a regular expression", REQUIRED)
SPEECH_LORA = {
    "r": size_field(REQUIRED),
    "lora_alpha": number_field(REQUIRED),
    "dp": FRACTION,
    "layer": REGEX,
}
TARGET_MODULES = Field(
    lambda x: isinstance(x, str | list), "must be a list or a regular expression", REQUIRED
)
OPTIONAL_FLAG = dataclasses.replace(FLAG, accepts=lambda x: x is None or type(x) is bool)
RANKS = Field(
    lambda x: not x or isinstance(x, Mapping) and all(type(r) is int and r > 0 for r in x.values()),
    "must map patterns of names to whole numbers of 1 or more",
)
ALPHAS = Field(
    lambda x: not x or isinstance(x, Mapping) and all(is_real(a) and a > 0 for a in x.values()),
    "must map patterns of names to numbers above 0",
)
PEFT = {
    **ignored_fields(
        """task_type base_model_name_or_path revision inference_mode auto_mapping peft_version
        megatron_core qalora_group_size runtime_config"""
    ),
    "peft_type": only_field("LORA", default=REQUIRED),
    "r": size_field(REQUIRED),
    "lora_alpha": number_field(REQUIRED),
    "lora_dropout": FRACTION,
    "target_modules": TARGET_MODULES,
    "bias": only_field("none"),
    # The other ways to start change the matrices that the adapter stands beside.
    "init_lora_weights": only_field(True, False, "gaussian"),
    **dict.fromkeys(("use_rslora", "use_dora"), OPTIONAL_FLAG),
    "rank_pattern": RANKS,
    "alpha_pattern": ALPHAS,
    **neutral_fields("use_qalora lora_bias fan_in_fan_out ensure_weight_tying", False, None),
    **neutral_fields(
        """modules_to_save layers_to_transform layers_pattern exclude_modules layer_replication
        target_parameters trainable_token_indices loftq_config eva_config corda_config
        lora_ga_config velora_config alora_invocation_tokens arrow_config kasa_config
        monteclora_config megatron_config use_bdlora""",
        *(None, {}, []),
    ),
}
