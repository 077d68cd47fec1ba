"""Arithmetic against what is really there: the state's shapes, and what libtpu allots."""

import dataclasses
import itertools

import jax
import pytest

from melllm_jax import flops, sharding
from melllm_jax.config.overrides import override
from melllm_jax.config.run import ScoreInterval
from melllm_jax.nn import vocab_parallel
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.planning import analytic_cost, search
from melllm_jax.training import device_memory
from melllm_jax.training.train_step import Update
from tests.support import models, plans

WHISPER = {"model.front": "whisper", "model.whisper.d": 16, "model.whisper.n": 2} | {
    "model.whisper.f": 24,
    "model.whisper.l": 2,
    "model.whisper.positions": 12,
}
SOUND = {"mel.kind": "whisper", "mel.m": 80, "mel.normalize": "none"}
TEACHER = (
    SOUND
    | {"distill.teacher": "whisper", "distill.whisper.d": 16}
    | {
        "distill.whisper.n": 2,
        "distill.whisper.f": 24,
        "distill.whisper.l": 2,
        "distill.whisper.positions": 12,
    }
)
BLOCKS = {"mel.kind": "phi4", "mel.m": 80, "distill.teacher": "conformer", "distill.c": 8} | {
    "distill.conformer.l": 2,
    "distill.conformer.n": 2,
    "distill.conformer.f": 12,
    "distill.conformer.distance": 4,
}
OPTIMS = {
    "adamw": {},
    "muon": {"optim.kind": "muon"},
    "lora": {"optim.train": "lora"},
    "front": {"optim.train": "front"},
    "muon of lora": {"optim.train": "lora", "optim.kind": "muon"},
    "head apart": {"model.tied": False},
    "text alone": {"model.front": "none"},
    "conv stem": {"model.front": "conv"},
    "stem frozen": {"model.front": "conv", "optim.encoder": "frozen"},
    "whisper": WHISPER,
    "whisper_conv": WHISPER | {"model.front": "whisper_conv"},
    "whisper frozen": WHISPER | {"optim.encoder": "frozen", "optim.train": "lora"},
    "taught": TEACHER | {"optim.train": "lora"},
    "taught by a conformer": BLOCKS,
}

pytestmark = pytest.mark.libtpu


@pytest.mark.parametrize(
    ("split", "optim"),
    [("fsdp2-seq2-tp2", optim) for optim in OPTIMS]
    + [(split, "muon of lora") for split in ("fsdp8", "fsdp4-tp2")]
    + [("replica2-seq4", optim) for optim in ("adamw", "whisper frozen")],
)
def test_state_is_that_of_the_arrays_but_for_norms_biases_and_counts(split, optim):
    """Those are whole on every chip: at most 12 bytes a number; counts and statistics take 100."""
    run = override(models.run(), OPTIMS[optim])
    mesh = sharding.make_mesh(models.SPLITS[split])
    with jax.set_mesh(mesh):
        shapes = Update(objective_of(run)).shapes(mesh)
    vectors = (2 * run.model.l + 1) * run.model.d + 2 * run.model.d
    if run.model.front == "whisper":
        w = run.model.whisper
        vectors += w.l * (8 * w.d + w.f) + 4 * w.d
    w, blocks, heads = run.distill.whisper, run.distill.conformer, run.model.l * run.model.d
    if run.distill.teacher == "whisper":
        vectors += w.l * (8 * w.d + w.f) + 4 * w.d + heads
    if run.distill.teacher == "conformer":  # its table of distances and statistics as well
        vectors += blocks.l * (20 * 8 + 6 * blocks.f) + 2 * blocks.distance * blocks.n + 2 * 80
        vectors += heads
    if run.model.front == "whisper_conv":
        vectors += 2 * run.model.whisper.d
    told = analytic_cost.estimate_cost(run, dict(mesh.shape)).state
    assert told <= device_memory.bytes_per_device(shapes) <= told + 12 * vectors + 100


SIZES = {"replica": 1, "fsdp": 4, "seq": 1, "tp": 1}


def told(**changes):
    return analytic_cost.estimate_cost(plans.run(**changes), SIZES)


# Of a run that is reckoned by hand below, 2 layers of 4·18 + 6·4 + 3·4·6 + 2·4 = 176 weights and a
# norm of 4 make 356, and the table is 40. A chip has an eighth of both, 49.5, and 2 rows of 4
# positions.
HAND = models.Model(d=4, n=2, k=2, h=3, f=6, l=2, v=10, front="none")
GRID = {"replica": 2, "fsdp": 4, "seq": 2, "tp": 2}


def hand(model=None, **optim):
    run = models.run(
        dataclasses.replace(HAND, **(model or {})), models.Lora(), b=16, t=8, compute="bfloat16"
    )
    return override(run, {f"optim.{name}": value for name, value in optim.items()})


# Numbers a position and chip: qkv 9, attended 3, out 4, gate_up 6. The stream of 4 stays for each
# of 2 layers; the layer at work has 6 · 4 + 2 · 22. In bfloat16 at 8 positions, and 8 · 5 scores
# twice in float32. Gradients and their cast are 6 bytes of each of 49.5; half of two layers,
# gathered in bfloat16, is 356. FLOPs a position: qkv 144, attended 4 · 6 · 4.5, out 48, gate_up 96.
PASSING = 6 * 49.5 + 356


@pytest.mark.parametrize(
    ("model", "optim", "activations", "again"),
    [
        ({"remat": "full"}, {}, PASSING + 16 * (2 * 4 + 68) + 320, 128 * 2 * 396),
        ({"remat": "named"}, {}, PASSING + 16 * (2 * 16 + 68) + 320, 128 * 2 * 144),
        ({"remat": "offload"}, {}, PASSING + 16 * (2 * 4 + 68) + 320, 128 * 2 * 144),
        ({"remat": "dots"}, {}, PASSING + 16 * (2 * 23 + 68) + 320, 128 * 2 * 108),
        # And three norms, and the MLP's product.
        ({"remat": "none"}, {}, PASSING + 16 * (2 * (26 + 12 + 3) + 68) + 320, 0),
        # Half of the positions at once; gradients once more.
        ({"remat": "full"}, {"micro": 2}, 10 * 49.5 + 356 + 8 * 76 + 160, 128 * 2 * 396),
    ],
    ids=["full", "named", "offload", "dots", "none", "micro"],
)
def test_memory_and_products_are_those_by_hand(model, optim, activations, again):
    found = analytic_cost.estimate_cost(hand(model, **optim), GRID)
    assert found.state == 49.5 * 12
    assert found.activations == activations
    # Useful: three times 2 · 396 weights and 2 · 4 · 6 · 4.5 of attention, at 128 positions.
    assert found.executed_flops == 3 * 128 * (792 + 216) + again


def test_scores_that_are_made_in_chunks_are_made_twice(monkeypatch):
    """Of more tokens than a chunk has, where those of a chip's 8 positions are not few."""

    def again(v):
        run = hand({"v": v})
        return analytic_cost.estimate_cost(run, GRID).executed_flops - flops.update_flops(run)

    few = again(2 * 8449)
    monkeypatch.setattr(vocab_parallel, "WHOLE", 4 * 8 * 8449 - 1)
    assert few == again(2 * 8448)
    assert again(2 * 8449) - few == 128 * 2 * 4 * 2 * 8449


@pytest.mark.parametrize(
    ("model", "optim", "sent"),
    [
        # Two bytes each. replica: 2 · 1/2 of 49.5 gradients. fsdp: 3/4 of 396 / 2 weights, gathered
        # twice and scattered once. seq: keys and values of 6 / 2 numbers, gathered twice and
        # scattered once in each of 2 layers, 1/2 of 16 positions; and gradients, as over replica.
        # tp: 2 sums of 4 in a layer, in each of 3 passes, and the head's: 2 · 1/2 of 8 positions.
        (
            {"remat": "full"},
            {},
            {"replica": 99, "fsdp": 3 / 4 * 3 * 396, "seq": 576 + 99, "tp": 16 * (2 * 2 * 12 + 4)},
        ),
        (
            {"remat": "named"},  # queries, keys and values are there already
            {},
            {"replica": 99, "fsdp": 891, "seq": 576 * 2 / 3 + 99, "tp": 832},
        ),
        (
            {"remat": "none"},  # two passes
            {},
            {"replica": 99, "fsdp": 891, "seq": 384 + 99, "tp": 16 * (2 * 2 * 8 + 4)},
        ),
        (
            {"remat": "full"},
            {"micro": 2},  # of half the positions each, but of all weights
            {"replica": 99, "fsdp": 2 * 891, "seq": 675, "tp": 832},
        ),
    ],
    ids=["full", "named", "none", "micro"],
)
def test_bytes_sent_along_each_axis_are_those_by_hand(model, optim, sent):
    found = analytic_cost.estimate_cost(hand(model, **optim), GRID).bytes_sent
    assert found == pytest.approx(sent)


def taught(seq=2, **fields):
    """What a teacher adds to `hand`, for a front end that hears 20 ms a position."""
    sizes = {"d": 4, "n": 2, "f": 6, "l": 2, "positions": 6}
    cfg = {f"distill.whisper.{name}": size for name, size in sizes.items()}
    cfg |= {"distill.teacher": "whisper", "distill.windows": 1}
    plain = override(hand({"front": "linear"}), SOUND | {"mel.r": 2})
    run = override(plain, cfg | {f"distill.{name}": value for name, value in fields.items()})
    more, less = (analytic_cost.estimate_cost(one, GRID | {"seq": seq}) for one in (run, plain))
    sent = {axis: more.bytes_sent[axis] - less.bytes_sent[axis] for axis in GRID}
    products = more.executed_flops - less.executed_flops
    assert products == pytest.approx(flops.distillation_flops(run))
    return more.state - less.state, more.activations - less.activations, sent


def test_a_teacher_takes_the_memory_and_sends_the_bytes_that_it_does_by_hand():
    """A chip has 2 rows of 4 positions and half of the window of 6 of each, 6 heard in all.

    Two heads of 20 weights are 10 a chip. Of the teacher's, in bfloat16, 224 of blocks are 28,
    1,008 of convolutions 252, and the table of 24 is whole.
    """
    state, activations, sent = taught()
    assert state == 10 * 12 + 2 * (28 + 252 + 24)
    # Gradients and their cast; four outputs of 4 and the layer at work, of 6 · 4 + 2 · 3; scores of
    # 3 queries and 6 keys of one head in two windows. Of the model 4 outputs of 4, and of each
    # position and layer one state in bfloat16 and two in float32.
    teacher = 2 * 6 * (4 * 4 + 30) + 2 * 3 * 6 * 4
    assert activations == 6 * 10 + teacher + 8 * (2 * 4 * 4 + 2 * 4 * (2 + 4 + 4))
    # Heads: summed over copies; 40 weights gathered twice and scattered once. Of the teacher 1,324
    # weights of which tp has half; keys and values of two layers and two states of 4; two sums.
    assert sent == pytest.approx(
        {
            "replica": 2 * 1 / 2 * 10 * 2,
            "fsdp": 3 / 4 * (3 * 40 * 2 + 1324),
            "seq": 2 * 1 / 2 * 10 * 2 + 6 * (2 * 2 * 4 / 2 + 2 * 4) * 2,
            "tp": 1 / 2 * 6 * 2 * 2 * 2 * 4 * 2,
        }
    )


def test_what_a_teacher_hears_of_clips_is_the_row():
    """Rows of 8 positions, 2 a chip and half of each: 8 heard, not 6; the scores of 4 queries."""
    _, whole, _ = taught()
    _, clips, _ = taught(frame="clip")
    assert clips - whole == 2 * (8 - 6) * (4 * 4 + 30) + 2 * (4 * 8 - 3 * 6) * 4


def test_what_is_kept_takes_memory_and_saves_products():
    ways = [
        {"model_remat": "full"},
        *(
            {"model_remat": "named", "model_kept": plans.ALL[:count]}
            for count in range(1, len(plans.ALL) + 1)
        ),
        {"model_remat": "none"},
    ]
    found = [told(**way) for way in ways]
    for less, more in itertools.pairwise(found):
        assert more.activations > less.activations
        assert more.executed_flops <= less.executed_flops
    assert found[-1].executed_flops < found[0].executed_flops
    # Splash's scores apart, "dots" keeps every product.
    dots = told(model_remat="dots")
    assert found[-1].executed_flops < dots.executed_flops < found[0].executed_flops


@pytest.mark.parametrize("axis", ["replica", "fsdp", "seq", "tp"])
def test_an_axis_of_one_device_sends_nothing_and_one_of_two_does(axis):
    run = plans.run(data_b=16, model_n=4, model_k=2)
    alone = analytic_cost.estimate_cost(run, dict.fromkeys(SIZES, 1)).bytes_sent
    assert set(alone.values()) == {0.0}
    pair = analytic_cost.estimate_cost(run, dict.fromkeys(SIZES, 1) | {axis: 2}).bytes_sent
    assert {name for name, sent in pair.items() if sent} == {axis}


@pytest.mark.parametrize(
    "changes",
    [
        {"model_n": 4, "model_k": 2},
        {"model_n": 4, "model_k": 4, "model_f": 514},
        {"model_n": 4, "model_k": 4, "model_v": 1026},
        {"model_n": 2, "model_k": 2, "data_t": 512},
        {"model_n": 4, "model_k": 2, "data_t": 1026},  # in four parts, two over
        {"model_n": 4, "model_k": 2, "model_d": 36},
        {"model_n": 4, "model_k": 2, "data_b": 12},
        {"model_n": 4, "model_k": 4, "model_front": "whisper", "model_whisper.n": 2},
        {"model_n": 4, "model_k": 4, "mel_kind": "whisper", "mel_m": 80, "mel_normalize": "none"}
        | {"distill_teacher": "whisper", "distill_whisper.n": 2, "distill_whisper.l": 2}
        | {"distill_whisper.positions": 12},
    ],
    ids=str,
)
def test_meshes_are_all_that_split_the_run_and_no_others(changes):
    run = plans.run(**{"data_b": 16, "data_t": 256} | changes)
    found = search.candidate_meshes(16, 2, run)
    assert found
    axes = [tuple(mesh.values()) for mesh in found]
    assert len(axes) == len(set(axes))
    for replica, fsdp, seq, tp in itertools.product((1, 2, 4, 8, 16), repeat=4):
        if replica * fsdp * seq * tp != 16 or replica != 2 or max(seq, tp) > 8:
            assert (replica, fsdp, seq, tp) not in axes
            continue
        grid = (replica, fsdp, seq, tp)
        abstract = jax.sharding.AbstractMesh(grid, sharding.AXES)
        try:
            sharding.check_mesh(run, abstract)
            whole = seq * tp == 1 or run.data.t // seq % 128 == 0  # splash
        except ValueError:
            whole = False
        assert (grid in axes) == whole, grid


def test_meshes_of_a_run_that_decodes_as_it_trains_leave_time_whole():
    run = plans.run(data_t=256)
    assert any(mesh["seq"] > 1 for mesh in search.candidate_meshes(4, 1, run))
    scores = dataclasses.replace(run, scoring=ScoreInterval(every=100))
    assert {mesh["seq"] for mesh in search.candidate_meshes(4, 1, scores)} == {1}


def test_no_mesh_where_rows_are_fewer_than_the_slices_split_them_into():
    assert search.candidate_meshes(4, 4, plans.run(data_b=2)) == []
