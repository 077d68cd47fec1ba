import numpy as np
import pytest

from data_pipelines.corpora.corpus import load_utterance_wave, open_corpus
from data_pipelines.loader import pipeline, stage_timing
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.config.overrides import override
from melllm_jax.errors import Mistake
from tests.support.runs import corpus, tiny


def taken(folder, **changes):
    run = override(tiny(folder), {name.replace("__", "."): x for name, x in changes.items()})
    opened = open_corpus(folder, "train")
    return (
        run,
        opened,
        stage_timing.make_stages(run, load_tokenizer("bytes"), opened, range(len(opened))),
    )


def test_stages_do_what_the_chain_does_and_leave_out_what_is_unusable(tmp_path):
    folder = corpus(tmp_path / "data", 10, changes={3: {"audio_filepath": "audio/none.flac"}})
    run, opened, found = taken(folder, data__augment__speed=1.0)
    assert list(found.actions) == [
        *("read", "decode", "change", "mel", "augment", "tokenise", "assemble", "pack")
    ]
    assert found.utterances == 9
    usable = [opened[i] for i in range(10) if i != 3]
    waves = [load_utterance_wave(one) for one in usable]
    assert found.audio == pytest.approx(sum(map(len, waves)) / 16_000)
    assert [one.id for one in found.actions["read"]()] == [one.id for one in usable]
    for made, wave in zip(found.actions["decode"](), waves, strict=True):
        np.testing.assert_array_equal(made.wave, wave)
    lengths = {
        round(len(x.wave) / len(y), 1)
        for x, y in zip(found.actions["change"](), waves, strict=True)
    }
    assert lengths <= {0.9, 1.0, 1.1} and len(lengths) > 1
    assert found.actions["tokenise"]() == [list(one.text.encode()) for one in usable]
    for columns, mel in zip(found.actions["assemble"](), found.actions["mel"](), strict=True):
        assert columns["frames"].sum() == len(mel)


def test_stages_pack_fills_rows_as_training_does(tmp_path):
    folder = corpus(tmp_path / "data", 30)
    run, _, found = taken(folder)
    batches = found.actions["pack"]()
    real = next(iter(pipeline.train_batches(run, load_tokenizer("bytes"))))
    assert batches[0].patches.shape[1:] == real.patches.shape[1:]
    assert batches[0].patches.dtype == real.patches.dtype
    frames = sum(int(batch.frames.sum()) for batch in batches)
    assert frames * 0.01 == pytest.approx(found.packed, rel=0.1)
    assert found.packed >= found.audio


def test_stages_of_no_usable_utterance_say_why(tmp_path):
    folder = corpus(tmp_path / "data", 3, changes={i: {"text": " "} for i in range(3)})
    with pytest.raises(Mistake, match="no utterance is usable: empty transcript"):
        taken(folder)
