import dataclasses
import functools
import json
import subprocess
import sys

import pytest

from melllm_jax.config.data import Augment, Data, Sounds, Source
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model, Rope
from melllm_jax.config.overrides import (
    RENAMED,
    fields,
    from_json,
    identity,
    override,
    to_json,
    with_new_names,
    with_old_names,
)
from melllm_jax.config.run import Optim, Run
from melllm_jax.errors import Mistake
from melllm_jax.presets.catalog import PRESETS
from tests.support.paths import ROOT

RUN = Run(
    name="tiny",
    model=Model(
        d=64,
        n=4,
        k=2,
        h=9,
        f=128,
        l=2,
        v=260,
        rope=Rope(short=(1.0,) * 4, long=(2.0,) * 4),
        front="whisper",
    ),
    data=Data(
        t=64,
        b=8,
        sources=(Source("corpus", 2.0, "f00d"),),
        augment=Augment(rooms=Sounds("rooms"), noises=Sounds("noises")),
    ),
    optim=Optim(steps=10, freeze=(1,)),
    mel=Mel(kind="plain"),
    lora=Lora(r=4),
)
# A valid other value of each field: those that decide the result, and those that say where it ran.
DECIDES = {
    "model.d": 128,
    "model.n": 8,
    "model.k": 1,
    "model.h": 8,
    "model.f": 64,
    "model.l": 3,
    "model.v": 261,
    "model.eps": 1e-6,
    "model.rope.theta": 5e5,
    "model.rope.partial": 0.9,
    "model.rope.short": (1.5,) * 4,
    "model.rope.long": (2.5,) * 4,
    "model.rope.original": 2048,
    "model.rope.longest": 8192,
    "model.rope.factor": 4.0,
    "model.rope.low": 2.0,
    "model.rope.high": 8.0,
    "model.tied": False,
    "model.window": 16,
    "model.qkv_bias": True,
    "model.qk_norm": True,
    "model.front": "conv",
    "model.c": 512,
    "model.conformer.l": 12,
    "model.conformer.n": 8,
    "model.conformer.f": 1024,
    "model.conformer.taps": 5,
    "model.conformer.chunk": 8,
    "model.conformer.left": 4,
    "model.conformer.distance": 100,
    "model.whisper.d": 768,
    "model.whisper.n": 3,
    "model.whisper.f": 1024,
    "model.whisper.l": 6,
    "model.whisper.positions": 750,
    "model.writes": "speech",
    "model.mel_head.prenet": 128,
    "model.mel_head.dropout": 0.25,
    "model.mel_head.hidden": 128,
    "model.mel_head.channels": 128,
    "model.mel_head.convolutions": 3,
    "model.mel_head.taps": 3,
    "model.mel_head.causal": True,
    "model.mel_head.sample": False,
    "speech_loss.kl": 0.1,
    "speech_loss.kl_after": 100,
    "speech_loss.flux": 0.0,
    "speech_loss.stop": 0.5,
    "speech_loss.stop_positive": 5.0,
    "text.request": "Read aloud.",
    "model.speech": "bidirectional",
    "data.t": 128,
    "data.b": 16,
    "data.sources": (Source("corpus", 3.0, "f00d"),),
    "data.lanes": 1,
    "data.temperature": 2.0,
    "data.epochs": 3,
    "data.bins": 4,
    "data.max_reject_share": 0.5,
    "data.longest": 20.0,
    "data.wire": "float32",
    "data.augment.speed": 1.0,
    "data.augment.speeds": (1.2,),
    "data.augment.reverb": 0.5,
    "data.augment.rooms.split": "small",
    "data.augment.rooms.digest": "f00d",
    "data.augment.noise": 0.5,
    "data.augment.noises.split": "loud",
    "data.augment.noises.digest": "f00d",
    "data.augment.snrs": (20.0,),
    "data.augment.volume": 1.0,
    "data.augment.quietest": 0.5,
    "data.augment.loudest": 1.5,
    "data.augment.warp": 1.0,
    "data.augment.warp_width": 40,
    "data.augment.mask": 1.0,
    "data.augment.time_masks": 1,
    "data.augment.time_width": 20,
    "data.augment.time_share": 0.2,
    "data.augment.band_masks": 1,
    "data.augment.band_width": 10,
    "data.augment.shift": 7,
    "optim.steps": 20,
    "optim.lr": 1e-4,
    "optim.kind": "muon",
    "optim.schedule": "wsd",
    "optim.warmup": 5,
    "optim.decay": 0.5,
    "optim.final": 0.0,
    "optim.b1": 0.8,
    "optim.b2": 0.99,
    "optim.eps": 1e-6,
    "optim.weight_decay": 0.0,
    "optim.clip": 0.0,
    "optim.train": "lora",
    "optim.freeze": (0,),
    "optim.encoder": "frozen",
    "optim.compute": "float32",
    "mel.kind": "phi4",
    "mel.m": 40,
    "mel.r": 4,
    "mel.normalize": "none",
    "mel.telephone": "native",  # of phi4
    "mel.floor": -5.0,
    "mel.mean": (0.0,) * 80,
    "mel.invstd": (1.0,) * 80,
    "text.digest": "f00d",
    "text.template": "phi4",
    "text.instruction": "Write it down.",
    "text.placeholder": 7,
    "text.missing": "added",
    "lora.r": 8,
    "lora.alpha": 8.0,
    "lora.dropout": 0.1,
    "lora.at": "speech",
    "init.digest": "f00d",
    "init.front_digest": "f00d",
    "distill.teacher": "whisper",
    "distill.digest": "f00d",
    "distill.whisper.d": 768,
    "distill.whisper.n": 3,
    "distill.whisper.f": 1024,
    "distill.whisper.l": 6,
    "distill.whisper.positions": 750,
    "distill.c": 512,
    "distill.conformer.l": 12,
    "distill.conformer.n": 8,
    "distill.conformer.f": 1024,
    "distill.conformer.taps": 5,
    "distill.conformer.chunk": 8,
    "distill.conformer.left": 4,
    "distill.conformer.distance": 100,
    "distill.frame": "clip",
    "distill.windows": 4,
    "distill.teacher_layers": (1,),
    "distill.student_layers": (0, 1, 2, 3),
    "distill.depth": 1,
    "distill.time": "linear",
    "distill.head": "linear",
    "distill.loss": "mse",
    "distill.weight": 0.5,
    "distill.schedule": "off",
    "distill.until": 5,
    "seed": 1,
}
WHERE = {
    "model.family": "llama",
    "name": "other",
    "model.attention": "blocks",
    "model.remat": "none",
    "model.kept": ("out",),
    "model.scan": False,
    "optim.micro": 2,
    "data.augment.rooms.path": "elsewhere",
    "data.augment.noises.path": "elsewhere",
    "data.corrupt": "skip",
    "data.workers": 2,
    "data.threads": 4,
    "data.ahead": 4,
    "text.tokenizer": "elsewhere.json",
    "init.path": "elsewhere",
    "init.front": "elsewhere",
    "distill.path": "elsewhere",
    "mesh.topology": "v5e:4x4",
    "mesh.slices": 2,
    "mesh.replica": 2,
    "mesh.fsdp": 4,
    "mesh.seq": 2,
    "mesh.tp": 2,
    "checkpoints.every": 5,
    "checkpoints.last": 1,
    "checkpoints.milestone": 100,
    "metrics.every": 10,
    "scoring.every": 50,
}


def test_tables_of_this_file_name_every_field_once():
    assert DECIDES.keys().isdisjoint(WHERE)
    assert DECIDES.keys() | WHERE.keys() == dict(fields(RUN)).keys()


@functools.cache
def run_before(name):
    """A run whose field of that name may have its other value.

    LongRoPE has no other scaling, and a teacher hears Whisper's mel.
    """
    plain = {"model.rope.short": (), "model.rope.long": ()}
    heard = {"mel.kind": "whisper", "mel.normalize": "none"}
    needed = {"model.rope.factor": plain, "model.rope.high": plain, "distill.teacher": heard}
    return override(RUN, needed.get(name, {}))


@functools.cache
def changed(name):
    """A run whose field of that name, and no other, has its other value."""
    return override(run_before(name), {name: (DECIDES | WHERE)[name]})


def test_identity_with_another_deciding_value_changes():
    assert [name for name in DECIDES if identity(changed(name)) == identity(run_before(name))] == []


def test_identity_with_another_place_stays():
    assert [name for name in WHERE if changed(name) == RUN] == []
    assert [name for name in WHERE if identity(changed(name)) != identity(RUN)] == []


def test_identity_reads_a_corpus_by_content_not_by_path():
    moved, grown = Source("moved", 2.0, "f00d"), Source("corpus", 2.0, "beef")
    assert identity(override(RUN, {"data.sources": [moved]})) == identity(RUN)
    assert identity(override(RUN, {"data.sources": [grown]})) != identity(RUN)


def test_override_sets_the_field_and_no_other():
    for name, value in (DECIDES | WHERE).items():
        before, after = (dict(fields(run)) for run in (run_before(name), changed(name)))
        assert after == before | {name: value}


def test_run_with_any_value_reads_back_equal_from_json():
    runs = {name: changed(name) for name in DECIDES | WHERE}
    assert [name for name, run in runs.items() if from_json(to_json(run), Run) != run] == []


def test_a_field_that_came_later_is_written_only_where_it_says_something():
    """So that identities and files of runs from before it stay what they were."""
    assert not any(name in to_json(RUN) for name in ("placeholder", '"at"'))
    assert json.loads(to_json(override(RUN, {"text.placeholder": 7})))["text"]["placeholder"] == 7


def test_a_run_without_a_conformer_is_written_as_before_there_was_one():
    written = to_json(RUN)
    assert not any(name in written for name in ("conformer", "encoder", '"stored"'))
    baseline = json.loads(to_json(PRESETS["conformer_asr_random_frozen"]()))
    assert baseline["optim"]["encoder"] == "frozen"
    assert baseline["init"]["front"] == "random"
    assert not {"c", "conformer"} & json.loads(to_json(PRESETS["aura_smollm2"]()))["distill"].keys()


@pytest.mark.parametrize("name", PRESETS)
def test_preset_reads_back_equal_from_json_with_its_identity(name):
    run = PRESETS[name]()
    again = from_json(to_json(run), Run)
    assert again == run
    assert identity(again) == identity(run)


def test_override_of_no_field_is_the_run_itself():
    assert override(RUN, {}) == RUN


def test_override_of_several_fields_checks_only_their_end_state():
    run = override(RUN, {"model.n": 9, "model.k": 3, "optim.freeze": [5], "model.l": 6})
    assert (run.model.n, run.model.k, run.optim.freeze, run.model.l) == (9, 3, (5,), 6)


def test_override_takes_a_whole_number_for_a_float():
    lr = override(RUN, {"optim.lr": 1}).optim.lr
    assert (lr, type(lr)) == (1.0, float)


@pytest.mark.parametrize(
    "name,near",
    [("model.dd", "model.d"), ("optim.warmpu", "optim.warmup"), ("data.sorces", "data.sources")],
)
def test_override_of_an_unknown_name_names_the_nearest(name, near):
    with pytest.raises(Mistake, match=f"unknown field {name}=3: did you mean {near}"):
        override(RUN, {name: 3})


@pytest.mark.parametrize(
    "name,value,message",
    [
        ("model.d", "512", "model.d='512': must be of type int"),
        ("model.d", 512.0, "model.d=512.0: must be of type int"),
        ("model.d", True, "model.d=True: must be of type int"),
        ("model.tied", 1, "model.tied=1: must be of type bool"),
        ("optim.lr", "fast", "optim.lr='fast': must be of type float"),
        ("optim.lr", None, "optim.lr=None: must be of type float"),
        ("optim.kind", "adam", "optim.kind='adam': must be one of adamw, muon"),
        ("optim.freeze", 1, "optim.freeze=1: must be a list"),
        ("optim.freeze", ["1"], "optim.freeze='1': must be of type int"),
        ("name", 3, "name=3: must be of type str"),
        ("model", {"d": 8}, "unknown field model="),
    ],
)
def test_override_with_a_value_of_another_type_is_refused(name, value, message):
    with pytest.raises(Mistake) as caught:
        override(RUN, {name: value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"model.d": 0}, "model.d=0: must be positive"),
        ({"model.k": 3}, "model.n=4: query heads cannot share k=3 KV heads evenly"),
        ({"model.window": -1}, "model.window=-1"),
        ({"model.rope.short": [1.0]}, "model.rope.long=4 factors: short has 1"),
        ({"model.h": 16}, "model.rope.short=4 factors: needs 8"),
        ({"model.rope.partial": 1.5}, "model.rope.partial=1.5"),
        ({"mel.r": 3}, "mel.r=3: must be 1, 2, 4, 8 or 16"),
        ({"mel.m": 4}, "mel.m=4: is no band count of plain"),
        ({"mel.mean": [0.0]}, "mel.mean=1 values: needs 80 values"),
        ({"model.front": "conv", "mel.r": 4}, "mel.r=4: must be 8 for the conv front end"),
        ({"lora.r": 0, "optim.train": "lora"}, "lora.r=0"),
        ({"model.front": "none", "optim.train": "front"}, 'optim.train=front: model.front="none"'),
        ({"lora.r": -1}, "lora.r=-1"),
        ({"lora.r": 0, "lora.at": "speech"}, "lora.at=speech: lora.r=0 is no LoRA"),
        (
            {"model.front": "none", "lora.at": "speech"},
            'lora.at=speech: model.front="none" reads no speech',
        ),
        ({"lora.dropout": 1.0}, "lora.dropout=1.0"),
        ({"data.b": 0}, "data.b=0"),
        ({"data.max_reject_share": 2.0}, "data.max_reject_share=2.0"),
        ({"data.epochs": -1}, "data.epochs=-1"),
        ({"data.temperature": -1.0}, "data.temperature=-1.0"),
        ({"data.sources": [{"path": "a", "hours": -1.0}]}, "data.sources.hours=-1.0"),
        ({"data.sources": [{"path": "a", "weight": 0.0}]}, "data.sources.weight=0.0"),
        ({"optim.steps": 0}, "optim.steps=0"),
        ({"optim.warmup": -1}, "optim.warmup=-1"),
        ({"optim.decay": 0.0}, "optim.decay=0.0"),
        ({"optim.micro": 3}, "optim.micro=3: does not divide data.b=8"),
        ({"optim.freeze": [2]}, "optim.freeze=(2,): layers run from 0 to 1"),
        ({"mesh.tp": 0}, "mesh.tp=0"),
        ({"mesh.fsdp": -1}, "mesh.fsdp=-1"),
        ({"checkpoints.every": 0}, "checkpoints.every=0"),
        ({"checkpoints.last": 0}, "checkpoints.last=0"),
        ({"checkpoints.milestone": -1}, "checkpoints.milestone=-1"),
        ({"metrics.every": 0}, "metrics.every=0"),
        ({"scoring.every": -1}, "scoring.every=-1"),
    ],
)
def test_value_that_breaks_a_rule_is_refused_by_field_value_and_rule(changes, message):
    with pytest.raises(Mistake) as caught:
        override(RUN, changes)
    assert str(caught.value).startswith(message)


def test_json_that_is_none_is_refused():
    with pytest.raises(Mistake, match="run.json is no JSON"):
        from_json("{", Run)


def edited(edit):
    tree = json.loads(to_json(RUN))
    edit(tree)
    return json.dumps(tree)


@pytest.mark.parametrize(
    "edit,message",
    [
        (lambda run: run["model"].update(dd=3), "run.model.dd=…: is no field: did you mean d?"),
        (lambda run: run["model"].pop("d"), "lacks d"),
        (lambda run: run.pop("data"), "lacks data"),
        (lambda run: run.update(mel=[80]), "run.mel=[80]: must be an object of fields"),
        (lambda run: run["model"].update(d="64"), "run.model.d='64': must be of type int"),
        (lambda run: run["optim"].update(steps=0), "optim.steps=0: must be positive"),
    ],
)
def test_json_with_an_unknown_missing_or_ill_typed_field_is_refused(edit, message):
    with pytest.raises(Mistake) as caught:
        from_json(edited(edit), Run)
    assert message in str(caught.value)


def test_json_without_a_field_that_has_a_default_takes_the_default():
    run = from_json(edited(lambda run: run["optim"].pop("clip")), Run)
    assert run == RUN


def test_run_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUN.seed = 3


def test_config_imports_neither_jax_nor_tyro():
    code = (
        "import sys, melllm_jax.config.run, melllm_jax.batch, melllm_jax.errors;"
        "sys.exit(bool({'jax', 'tyro', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# What the six fields that were renamed stand for, under the names that they had first.
OLD = {
    "data.bad": 0.5,
    "keep.every": 5,
    "keep.last": 1,
    "keep.milestone": 100,
    "keep.log": 10,
    "keep.score": 50,
}
NEW = {
    "data.max_reject_share": 0.5,
    "checkpoints.every": 5,
    "checkpoints.last": 1,
    "checkpoints.milestone": 100,
    "metrics.every": 10,
    "scoring.every": 50,
}


def old_json(run):
    """`run.json` as it was written when the fields had their old names."""
    tree = json.loads(to_json(run))
    tree["data"]["bad"] = tree["data"].pop("max_reject_share")
    tree["keep"] = tree.pop("checkpoints")
    tree["keep"] |= {"log": tree.pop("metrics")["every"], "score": tree.pop("scoring")["every"]}
    return json.dumps(tree)


def test_old_names_are_no_fields_and_new_ones_are():
    assert RENAMED.keys() == OLD.keys()
    assert {RENAMED[name]: value for name, value in OLD.items()} == NEW
    names = dict(fields(RUN)).keys()
    assert names.isdisjoint(OLD) and names >= NEW.keys()


@pytest.mark.parametrize("old", OLD)
def test_override_by_an_old_name_sets_the_field(old):
    assert override(RUN, {old: OLD[old]}) == override(RUN, {RENAMED[old]: OLD[old]})


def test_old_run_json_reads_equal_with_its_identity():
    run = override(RUN, NEW)
    text = old_json(run)
    assert not any(f'"{name}"' in text for name in ("max_reject_share", "metrics", "scoring"))
    again = from_json(text, Run)
    assert again == run
    assert identity(again) == identity(run)


def test_old_run_json_without_some_fields_takes_their_defaults():
    tree = json.loads(old_json(override(RUN, NEW)))
    tree["keep"] = {"log": 10}
    del tree["data"]["bad"]
    assert from_json(json.dumps(tree), Run) == override(RUN, {"metrics.every": 10})


def test_old_run_json_with_an_unknown_field_is_refused():
    tree = json.loads(old_json(RUN))
    tree["keep"]["evry"] = 3
    with pytest.raises(Mistake, match="run.keep=…: is no field"):
        from_json(json.dumps(tree), Run)


def test_rule_broken_under_an_old_name_is_told_by_the_new_one():
    with pytest.raises(Mistake, match=r"^data.max_reject_share=2.0: must lie in \[0, 1\]$"):
        override(RUN, {"data.bad": 2.0})
    with pytest.raises(Mistake, match=r"^scoring.every=-1: is a count$"):
        override(RUN, {"keep.score": -1})


def test_names_turn_into_one_another():
    assert with_new_names(OLD | {"seed": 3}) == NEW | {"seed": 3}
    assert with_old_names(NEW | {"seed": 3}) == OLD | {"seed": 3}


def test_field_set_by_both_its_names_is_refused():
    with pytest.raises(Mistake, match="keep.log: is the old name of metrics.every, which is set"):
        override(RUN, {"keep.log": 1, "metrics.every": 2})
