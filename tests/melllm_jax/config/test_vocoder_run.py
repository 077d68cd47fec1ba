import json

import pytest

from melllm_jax.config.overrides import from_json, identity, override, to_json
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog
from tests.support.vocoders import vocoder_run


@pytest.mark.parametrize("name", catalog.VOCODERS)
def test_preset_reads_back_equal_from_json_which_says_its_kind_first(name):
    run = catalog.any_preset(name)
    text = to_json(run)
    assert next(iter(json.loads(text).items())) == ("kind", "vocoder")
    again = from_json(text, BaseRun)
    assert (again, identity(again)) == (run, identity(run))


def test_a_run_of_a_decoder_says_no_kind_and_keeps_the_order_of_its_fields():
    run = catalog.preset("quickstart")
    written = list(json.loads(to_json(run)))
    before = "name model data optim mel text lora init seed mesh checkpoints metrics scoring"
    assert written == before.split()
    assert type(from_json(to_json(run), BaseRun)) is Run


def test_another_kind_is_named():
    text = to_json(vocoder_run()).replace('"kind": "vocoder"', '"kind": "codec"', 1)
    with pytest.raises(Mistake, match="run.kind='codec': must be one of vocoder, or left out"):
        from_json(text, BaseRun)
    with pytest.raises(Mistake, match="run.kind"):
        from_json(to_json(vocoder_run()), Run)


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"mel.r": 2}, "mel.r=2: must be 1"),
        ({"mel.normalize": "utterance"}, 'mel.normalize=utterance: must be "none"'),
        ({"mel.kind": "speecht5", "mel.m": 80}, "vocos.hop=160: makes another number of samples"),
        ({"data.wire": "bfloat16"}, "data.wire=bfloat16: sound needs float32"),
        ({"data.augment.mask": 1.0}, "data.augment.mask=1.0: changes mel"),
        ({"optim.kind": "muon"}, 'optim.kind="muon": is for the layers of a decoder'),
        ({"optim.train": "lora"}, 'optim.train="lora": is for the layers of a decoder'),
        ({"optim.freeze": [0]}, "optim.freeze=.*is for the layers of a decoder"),
        ({"optim.micro": 3}, "optim.micro=3: does not divide data.b=8"),
        ({"scoring.every": 1}, "scoring.every=1: a vocoder says no words"),
        ({"init.front": "x"}, "init.front=x: a vocoder has no front end"),
        ({"data.t": 2, "adversarial.resolutions": [512]}, "data.t=2: 320 samples: .* 512"),
        ({"adversarial.resolutions": [100]}, "adversarial.resolutions=.*multiples of 32"),
        ({"adversarial.period_channels": []}, "adversarial.period_channels=.*needs a layer"),
        ({"adversarial.periods": [0]}, "adversarial.periods=.*must be positive"),
        ({"adversarial.mel": -1.0}, "adversarial.mel=-1.0: must be 0 or more"),
        ({"model.d": 3}, "unknown field model.d=3"),
    ],
)
def test_what_a_vocoder_cannot_be_trained_with_is_named(changes, said):
    with pytest.raises(Mistake, match=said):
        override(vocoder_run(), changes)


def test_a_command_for_decoders_names_a_preset_that_has_none():
    with pytest.raises(Mistake, match="preset=vocoder: trains a vocoder"):
        catalog.preset("vocoder")
    with pytest.raises(Mistake, match="preset=vocodr: .*did you mean vocoder"):
        catalog.any_preset("vocodr")
