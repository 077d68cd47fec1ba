import dataclasses
import math

import jax
import pytest

from melllm_jax import chips, flops, sharding
from melllm_jax.batch import Batch
from melllm_jax.config.data import Data
from melllm_jax.config.distillation import Distill
from melllm_jax.config.encoders import Conformer, Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model, Rope
from melllm_jax.config.run import Optim, Run
from melllm_jax.models import parameters
from melllm_jax.models.speaking_lm import make_model
from melllm_jax.nn.layers import LoraParam, NonTrainable
from melllm_jax.objectives import next_token
from melllm_jax.objectives.run_objective import objective_of
from tests.support import models

PHI = Run(
    name="phi-4-mini",
    model=Model(
        d=3072,
        n=24,
        k=8,
        h=128,
        f=8192,
        l=32,
        v=200_064,
        front="conv",
        rope=Rope(
            partial=0.75, short=(1.0,) * 48, long=(4.0,) * 48, original=4096, longest=131_072
        ),
    ),
    data=Data(t=4096, b=256),
    optim=Optim(steps=1),
    lora=Lora(r=320),
)

HEARS = Whisper(d=16, n=2, f=24, l=2, positions=12)
WHISPER = models.run(dataclasses.replace(models.MODEL, front="whisper", whisper=HEARS))
CONVOLUTIONS = models.run(dataclasses.replace(WHISPER.model, front="whisper_conv"))

CONFORMER = models.run(
    dataclasses.replace(
        models.MODEL, front="conformer", conformer=Conformer(l=3, n=2, f=20, taps=5, distance=7)
    )
)


def shapes_of(run):
    return parameters.abstract_model(
        lambda rngs: make_model(run.model, run.mel, run.lora, rngs=rngs)
    )


@pytest.fixture
def pod():
    """256 chips that are not here, as fsdp 32 × tp 8."""
    explicit = (jax.sharding.AxisType.Explicit,) * 4
    mesh = jax.sharding.AbstractMesh((1, 32, 1, 8), sharding.AXES, axis_types=explicit)
    with jax.sharding.use_abstract_mesh(mesh):
        yield mesh


def test_phi_4_mini_counts_what_its_checkpoint_has():
    """The paper's totals: 3.836 B, a stem of 12,616,704 and a projector of 12,589,056, LoRA."""
    count = flops.count_parameters(PHI)
    assert count.embed + count.head + count.layers == 3_836_021_760
    assert count.front == 12_616_704 + 12_589_056
    assert count.lora == 461_373_440


@pytest.mark.parametrize(
    "run",
    [
        PHI,
        models.run(),
        models.run(dataclasses.replace(models.MODEL, tied=False), lora=Lora()),
        models.run(dataclasses.replace(models.MODEL, front="conv", k=4), mel=Mel()),
        WHISPER,
        CONVOLUTIONS,
        CONFORMER,
        dataclasses.replace(PHI, model=dataclasses.replace(PHI.model, front="conformer")),
        models.run(dataclasses.replace(models.MODEL, qkv_bias=True)),
        models.run(dataclasses.replace(models.MODEL, qk_norm=True, h=16)),
        models.run(dataclasses.replace(models.MODEL, writes="speech")),
    ],
    ids=[
        *("phi-4-mini", "linear", "untied", "conv", "whisper", "whisper_conv", "conformer"),
        *("phi-4-multimodal", "qwen2", "qwen3", "speech"),
    ],
)
def test_parameters_equal_the_models_own_shapes(run):
    with models.one_device():
        skeleton, shapes = shapes_of(run)
    sizes = {name: math.prod(x.shape) for name, x in shapes.items()}
    kinds = skeleton.kinds
    lora = sum(sizes[name] for name in sizes if isinstance(kinds[name], LoraParam))
    fixed = sum(sizes[name] for name in sizes if isinstance(kinds[name], NonTrainable))
    front = sum(sizes[name] for name in sizes if name.startswith("front."))
    count = flops.count_parameters(run)
    assert (count.lora, count.front) == (lora, front - fixed)
    assert (count.embed, count.head) == (sizes["embed"], sizes.get("head", 0))
    assert count.total == sum(sizes.values()) - fixed


def test_gradients_of_phi_4_mini_keep_its_layout_on_256_chips(pod):
    """Shapes alone are traced: nothing is computed, and no device is needed."""
    sharding.check_mesh(PHI, pod)
    skeleton, shapes = shapes_of(PHI)
    spec = {"patches": sharding.a("b t p")}
    size = {"patches": (256, 4096, 640)}
    floats = ("patches", "loss_weight")
    batch = Batch(
        *(
            jax.ShapeDtypeStruct(
                size.get(name, (256, 4096)),
                "float32" if name in floats else "int32",
                sharding=jax.NamedSharding(pod, spec.get(name, sharding.a("b t"))),
            )
            for name in Batch._fields
        )
    )
    dtype = jax.numpy.dtype("bfloat16")
    loss = lambda w, b: next_token.next_token_loss(skeleton.model(w, dtype), b).loss
    grads = jax.eval_shape(jax.grad(loss), shapes, batch)
    assert grads.keys() == shapes.keys()
    for name, grad in grads.items():
        assert (grad.shape, grad.dtype) == (shapes[name].shape, shapes[name].dtype), name
        assert grad.sharding.spec == shapes[name].sharding.spec, name
    q = shapes["stack.blocks.attn.q"]
    assert q.sharding.spec == jax.P(None, "fsdp", "tp", None)
    assert q.sharding.shard_shape(q.shape) == (32, 96, 3, 128)


def test_forward_counts_two_a_weight_and_the_pairs_that_see_each_other():
    model = Model(d=8, n=2, k=1, h=4, f=16, l=3, v=32)
    run = models.run(model, lora=Lora(), b=2, t=7)
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16 + 2 * 8
    weights_read = 3 * layer + 8 + 32 * 8 + (64 * 8 + 8)
    scores = 3 * 2 * (2 * 2 * 4) * 4  # layers · heads · (q·k and share·v) · mean positions seen
    assert flops.forward_flops(run) == 2 * weights_read + scores
    near = dataclasses.replace(run, model=dataclasses.replace(model, window=2))
    seen = (1 + 2 * 6) / 7  # itself at first, then one before as well; 4 without a window
    assert flops.forward_flops(near) == pytest.approx(2 * weights_read + scores * seen / 4)
    far = dataclasses.replace(run, model=dataclasses.replace(model, window=100))
    assert flops.forward_flops(far) == flops.forward_flops(run)
    assert flops.update_flops(run) == 3 * 14 * flops.forward_flops(run)


def test_whisper_counts_each_weight_as_often_as_it_is_at_work():
    """Eight frames a position: the first convolution 8 times, all else 4, and the projector once.

    A row of 32 positions is 128 of the encoder's, of which each sees a window of 12.
    """
    first, second = 3 * 8 * 16 + 16, 3 * 16 * 16 + 16
    layer = 4 * 16 * 16 + 3 * 16 + 2 * 16 * 24 + 24 + 16 + 2 * 2 * 16
    weights = 8 * first + 4 * (second + 2 * layer + 2 * 16)
    scores = 4 * 2 * (2 * 2 * 16) * 12
    assert flops.encoder_flops(WHISPER) == 2 * weights + scores
    projector = 4 * 16 * 32 + 32 + 32 * 32 + 32
    assert flops.front_flops(WHISPER) == 2 * weights + scores + 2 * projector
    short = dataclasses.replace(WHISPER, data=dataclasses.replace(WHISPER.data, t=2))
    assert flops.encoder_flops(short) == 2 * weights + scores * 8 / 12
    assert flops.encoder_flops(CONVOLUTIONS) == 2 * (8 * first + 4 * second)
    assert flops.front_flops(CONVOLUTIONS) == 2 * (8 * first + 4 * second + 4 * 16 * 32 + 32)


def test_a_frozen_encoder_costs_its_forward_pass_once():
    conv = models.run(dataclasses.replace(models.MODEL, front="conv"), mel=Mel())
    for run in (WHISPER, CONVOLUTIONS, conv):
        frozen = dataclasses.replace(run.optim, encoder="frozen")
        frozen = dataclasses.replace(run, optim=frozen)
        positions = float(run.data.b * run.data.t)
        spared = 2 * flops.encoder_flops(run) * positions
        assert flops.update_flops(frozen) == flops.update_flops(run) - spared
        assert flops.training_flops(frozen, positions, 0.0) == flops.update_flops(frozen)
        left = flops.trained_parameters(run) - flops.trained_parameters(frozen)
        assert left == flops.encoder_parameters(run) > 0


SOUND = Mel(kind="whisper", r=8, normalize="none")
TAUGHT = Distill(teacher="whisper", whisper=HEARS, windows=3)


def taught(run=None, **fields):
    """A run with a teacher of two layers of width 16, which leads both of the model's."""
    run = models.run(mel=SOUND) if run is None else run
    return dataclasses.replace(run, distill=dataclasses.replace(TAUGHT, **fields))


def test_a_teacher_adds_its_forward_pass_of_what_it_hears():
    """Of the rows' clips as that encoder before the model; of whole windows so many times one's."""
    plain = models.run(mel=SOUND)
    encoder = dataclasses.replace(models.MODEL, front="whisper", whisper=HEARS)
    before = models.run(encoder, mel=SOUND)
    clip, whole = (flops.teacher_flops(taught(frame=frame)) for frame in ("clip", "whole"))
    assert clip == pytest.approx(plain.data.t * flops.encoder_flops(before))
    windows = plain.data.t * 4 / HEARS.positions  # that a row would fill
    assert whole == pytest.approx(clip * 3 / windows)
    assert flops.teacher_flops(plain) == flops.distillation_flops(plain) == 0


@pytest.mark.parametrize(
    ("head", "width", "weights"),
    [("norm", 16, 32 * 16 + 32), ("linear", 16, 32 * 16), ("none", 32, 0)],
)
def test_heads_of_a_teacher_cost_three_passes_and_its_mean_one(head, width, weights):
    """Two layers learn: a head each, and four states of a position added up to one."""
    hears = dataclasses.replace(HEARS, d=width)
    run = taught(head=head, whisper=hears)
    each = 3 * 2 * 2 * weights + 2 * (4 * 2 * width)
    rows, t = run.data.b, run.data.t
    assert flops.distillation_flops(run) == rows * (flops.teacher_flops(run) + t * each)
    assert flops.count_parameters(run).align == 2 * weights


def test_a_teacher_is_no_part_of_what_mfu_counts_but_of_what_training_costs():
    plain, run = models.run(mel=SOUND), taught()
    assert flops.update_flops(run) == flops.update_flops(plain)
    positions = float(run.data.b * run.data.t)
    spent = flops.update_flops(run) + flops.distillation_flops(run)
    assert flops.training_flops(run, positions, 0.0) == pytest.approx(spent)
    silent = flops.training_flops(plain, 10.0, 5.0)
    share = 15 / positions * flops.distillation_flops(run)
    assert flops.training_flops(run, 10.0, 5.0) == pytest.approx(silent + share)


def test_a_teacher_and_its_heads_are_counted_as_the_networks_own_shapes():
    run = taught(teacher_layers=(1,), student_layers=(0,))
    objective = objective_of(run)
    sizes = lambda shapes: {name: math.prod(x.shape) for name, x in shapes.items()}
    with models.one_device():
        skeleton, own = parameters.abstract_model(objective.build)
        teacher, theirs = parameters.abstract_model(objective.companions()["teacher"].build)
    fixed = {k for k, kind in teacher.kinds.items() if isinstance(kind, NonTrainable)}
    learnt = {name: size for name, size in sizes(theirs).items() if name not in fixed}
    assert flops.teacher_parameters(run) == sum(learnt.values())
    count = flops.count_parameters(run)
    assert count.total == sum(sizes(own).values())
    for train in ("all", "lora", "front"):
        changed = dataclasses.replace(run, optim=dataclasses.replace(run.optim, train=train))
        names = objective_of(changed).trained(skeleton.kinds)
        assert flops.trained_parameters(changed) == sum(sizes(own)[name] for name in names)


def test_a_conformer_teaches_for_what_it_costs_as_a_front_end():
    mel = Mel(normalize="none")
    plain = models.run(mel=mel)
    own = CONFORMER.model
    cfg = Distill(teacher="conformer", c=own.c, conformer=own.conformer, teacher_layers=(2,))
    taught = dataclasses.replace(plain, distill=cfg)
    before = models.run(own, mel=mel)
    assert flops.teacher_flops(taught) == pytest.approx(plain.data.t * flops.encoder_flops(before))
    assert flops.teacher_parameters(taught) == flops.encoder_parameters(before)
    assert flops.update_flops(taught) == flops.update_flops(plain)


def test_what_is_trained_is_counted():
    counted = flops.count_parameters(models.run())
    trained = lambda name: flops.trained_parameters(models.run(train=name))
    assert trained("all") == counted.total
    assert trained("lora") == counted.front + counted.lora
    assert trained("front") == counted.front


def test_a_step_that_trains_lora_alone_spares_the_frozen_weights_gradients():
    run = models.run(train="lora")
    count, positions = flops.count_parameters(run), run.data.b * run.data.t
    spared = 2 * (count.layers + run.model.v * run.model.d) * positions
    everything = dataclasses.replace(run, optim=dataclasses.replace(run.optim, train="all"))
    assert flops.update_flops(run) == flops.update_flops(everything) - spared


def test_training_tells_speech_from_text_by_the_front_end_alone():
    run = models.run(b=2, t=7)
    front = flops.count_parameters(run).front
    assert flops.training_flops(run, 14.0, 0.0) == pytest.approx(flops.update_flops(run))
    assert flops.training_flops(run, 5.0, 9.0) == pytest.approx(
        flops.update_flops(run) - 9 * 6 * front
    )
    assert flops.training_flops(run, 50.0, 90.0) == pytest.approx(
        10 * flops.training_flops(run, 5.0, 9.0)
    )


def test_a_conformer_counts_its_weights_and_the_scores_of_a_window():
    count = flops.count_parameters(CONFORMER).front
    scores = lambda keys: 3 * (2 * 2 * 8) * keys  # blocks · (q·k and share·v) · width · keys
    assert flops.front_flops(CONFORMER) == 2 * count + scores(32)
    far = dataclasses.replace(CONFORMER, data=dataclasses.replace(CONFORMER.data, t=4096))
    assert flops.front_flops(far) == 2 * count + scores(500)


def test_a_frozen_encoder_has_no_backward_pass_but_its_projector_has():
    optim = dataclasses.replace(CONFORMER.optim, encoder="frozen")
    frozen = dataclasses.replace(CONFORMER, optim=optim)
    positions = CONFORMER.data.b * CONFORMER.data.t
    projector = 2 * (8 * 32 + 32 + 32 * 32 + 32)
    spared = 2 * (flops.front_flops(CONFORMER) - projector) * positions
    assert flops.update_flops(frozen) == pytest.approx(flops.update_flops(CONFORMER) - spared)
    trained = flops.training_flops(frozen, float(positions), 0.0)
    assert trained == pytest.approx(flops.update_flops(frozen))


def test_training_of_lora_alone_counts_as_its_step_does():
    run = models.run(train="lora")
    assert flops.training_flops(run, float(run.data.b * run.data.t), 0.0) == pytest.approx(
        flops.update_flops(run)
    )


def test_weights_that_multiply_count_the_head_even_where_it_is_the_embedding():
    tied = models.run()
    untied = models.run(dataclasses.replace(models.MODEL, tied=False))
    p = flops.count_parameters(tied)
    assert flops.matmul_parameters(tied) == p.total == p.layers + p.lora + p.front + p.embed
    assert flops.matmul_parameters(untied) == flops.matmul_parameters(tied)
    assert flops.count_parameters(untied).total == p.total + p.embed


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_a_chip_is_known_by_its_device_kind(kind, peak):
    assert chips.find_chip(kind).flops == peak


def test_an_unknown_device_has_no_peak():
    assert chips.find_chip("cpu") is None


@pytest.mark.parametrize("name", [name for name, chip in chips.CHIPS.items() if chip.clock])
def test_a_clock_turns_the_peak_into_a_power_of_two_of_flops_a_cycle(name):
    """Matrix units are squares of 128 or 256, and chips have 2, 4 or 8 of them."""
    chip = chips.CHIPS[name]
    cycle = math.log2(chip.flops / chip.devices / chip.clock)
    assert cycle == pytest.approx(round(cycle), abs=0.01)


@pytest.mark.parametrize("name", chips.CHIPS)
def test_a_chip_is_the_farther_the_slower(name):
    """Memory, then the links of a pod or server together, then the network beyond."""
    chip = chips.CHIPS[name]
    links = chip.link * max(2 * chip.torus, 1)
    assert chip.bandwidth > links >= chip.link >= 4 * chip.network
    assert (chip.torus > 0) == (chip.domain > 8) == ("TPU" in name)


def test_links_agree_with_the_makers_totals_of_both_directions():
    """GB/s a chip in both directions, docs.cloud.google.com/tpu/docs/tpu7x; a tenth is not seen."""
    for name, both in {"TPU v5p": 1200e9, "TPU v6 lite": 800e9, "TPU7x": 1200e9}.items():
        chip = chips.CHIPS[name]
        assert 4 * chip.torus * chip.link == pytest.approx(0.9 * both)
