import dataclasses
import functools

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import pytest

from melllm_jax import flops, sharding
from melllm_jax.batch import Batch
from melllm_jax.config.distillation import Distill
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.planning import traced_flops
from melllm_jax.training.train_step import Update
from tests.support import models


def count(function, *shapes):
    """What `function` of float32 arrays of these shapes executes."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return traced_flops.count_flops(jax.make_jaxpr(function)(*arrays))


def test_a_product_costs_two_a_number_and_depth():
    assert count(jnp.matmul, (5, 7), (7, 3)).dot == 2 * 5 * 7 * 3
    batched = functools.partial(jnp.einsum, "bij,bkj->bik")
    assert count(batched, (4, 5, 7), (4, 3, 7)).dot == 4 * 2 * 5 * 7 * 3
    assert count(lambda x: jnp.sum(jnp.exp(x) * x), (5, 7)).total == 0


def test_what_no_output_needs_does_not_count():
    def wasteful(x, y):
        spare = x @ y
        return jnp.sum(x), spare.shape[0]

    assert count(wasteful, (5, 7), (7, 3)).total == 0


@pytest.mark.parametrize(
    ("how", "multiplications"),
    [
        (dict(window_strides=(1,), padding=[(0, 0)]), 8 * 3),
        (dict(window_strides=(1,), padding=[(1, 1)]), 10 * 3 - 2),  # two taps read padding
        (dict(window_strides=(2,), padding=[(0, 0)]), 4 * 3),
        (dict(window_strides=(1,), padding=[(0, 0)], rhs_dilation=(2,)), 6 * 3),
        (dict(window_strides=(1,), padding=[(2, 2)], lhs_dilation=(2,)), 10 * 3),  # a transpose
    ],
    ids=["plain", "padded", "strided", "spread", "transposed"],
)
def test_a_convolution_costs_the_taps_that_read_its_input(how, multiplications):
    """10 numbers, 3 taps, 6 channels to 4, 2 rows."""
    conv = functools.partial(jax.lax.conv_general_dilated, **how)
    assert count(conv, (2, 6, 10), (4, 6, 3)).conv == 2 * 2 * 6 * 4 * multiplications


def test_a_convolution_in_groups_reads_its_own_channels_alone():
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        feature_group_count=3,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert count(conv, (2, 5, 5, 6), (3, 3, 2, 9)).conv == 2 * (2 * 3 * 3 * 9) * (3 * 3 * 2)


def test_loops_count_their_turns_and_branches_the_dearest():
    product = lambda x: x @ x
    once = 2 * 5**3
    scanned = lambda x: jax.lax.scan(lambda c, _: (product(c), None), x, None, length=6)[0]
    assert count(scanned, (5, 5)).dot == 6 * once
    nested = lambda x: jax.lax.fori_loop(0, 3, lambda _, c: scanned(c), x)
    assert count(nested, (5, 5)).dot == 18 * once
    chosen = lambda x: jax.lax.cond(x[0, 0] > 0, lambda c: c, lambda c: product(product(c)), x)
    assert count(jax.jit(chosen), (5, 5)).dot == 2 * once


def test_a_loop_without_a_known_end_is_reported():
    def until(x):
        return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ c, x)

    found = count(until, (5, 5))
    assert (found.dot, found.unknown) == (2 * 5**3, ("while",))
    counting = lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c + 1, x)
    assert count(counting, (5, 5)).unknown == ()


def test_a_checkpoint_pays_for_what_the_backward_pass_makes_again():
    def net(x, w, v):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ v))

    once = 2 * 4 * 8 * 8
    shapes = (4, 8), (8, 8), (8, 8)
    assert count(net, *shapes).dot == 2 * once
    plain = jax.value_and_grad(net, argnums=(0, 1, 2))
    assert count(plain, *shapes).dot == 6 * once
    remat = jax.value_and_grad(jax.checkpoint(net), argnums=(0, 1, 2))
    assert count(remat, *shapes).dot == 8 * once


def test_a_function_with_its_own_derivative_counts_what_runs():
    @jax.custom_vjp
    def own(x, w):
        return x @ w

    def backward(kept, g):
        x, w = kept
        return g @ w.T, (x.T @ g) @ jnp.ones((3, 3))

    own.defvjp(lambda x, w: (own(x, w), (x, w)), backward)
    assert count(own, (5, 7), (7, 3)).dot == 2 * 5 * 7 * 3
    graded = jax.value_and_grad(lambda x, w: jnp.sum(own(x, w)), argnums=(0, 1))
    assert count(graded, (5, 7), (7, 3)).dot == 3 * 2 * 5 * 7 * 3 + 2 * 7 * 3 * 3


@pytest.mark.usefixtures("mesh")
def test_devices_count_once_for_each_part_of_the_work():
    mesh = jax.sharding.get_mesh()

    def spread(spec):
        def function(x, w):
            return jax.shard_map(jnp.matmul, in_specs=(spec, jax.P()), out_specs=spec)(x, w)

        return jax.jit(function).trace(
            jax.ShapeDtypeStruct((8, 7), jnp.float32, sharding=jax.NamedSharding(mesh, spec)),
            jax.ShapeDtypeStruct((7, 3), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P())),
        )

    for spec in (jax.P(), jax.P("fsdp"), jax.P(("fsdp", "tp"))):
        assert traced_flops.count_flops(spread(spec).jaxpr).dot == 2 * 8 * 7 * 3


def kernel(cost=None):
    def body(x, y, out):
        out[...] = jnp.dot(x[...], y[...])

    return pl.pallas_call(
        body,
        grid=(2, 3),
        in_specs=[
            pl.BlockSpec((8, 16), lambda i, j: (i, 0)),
            pl.BlockSpec((16, 4), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((8, 4), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((16, 12), jnp.float32),
        cost_estimate=cost,
        interpret=True,
    )


def test_a_kernel_counts_its_body_at_every_point_of_its_grid():
    found = count(kernel(), (16, 16), (16, 12))
    assert (found.kernel, found.dot, found.unknown) == (2 * 16 * 16 * 12, 0, ())
    rows = jax.vmap(kernel())
    assert count(rows, (5, 16, 16), (5, 16, 12)).kernel == 5 * 2 * 16 * 16 * 12


def test_a_kernel_counts_what_its_author_states():
    stated = pl.CostEstimate(flops=1234, transcendentals=0, bytes_accessed=0)
    assert count(kernel(stated), (16, 16), (16, 12)).kernel == 1234


def traced(run):
    """What one update of a run executes, on the mesh in force."""
    mesh = jax.sharding.get_mesh()
    update = Update(objective_of(run))
    b, t = run.data.b, run.data.t

    def shaped(name):
        letters = "b t p" if name == "patches" else "b t"
        dtype = jnp.float32 if name in ("patches", "loss_weight") else jnp.int32
        shape = (b, t, run.patch_width)[: len(letters.split())]
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=jax.NamedSharding(mesh, sharding.a(letters))
        )

    batch = Batch(*map(shaped, Batch._fields))
    return traced_flops.count_flops(jax.jit(update).trace(update.shapes(mesh), batch).jaxpr)


def parts(run):
    """FLOPs of a forward pass of a run's batch: attention, the layers' matrices, the last alone."""
    m, rows = run.model, run.data.b * run.data.t
    attention = rows * m.l * 4 * m.n * m.h * run.data.t  # the whole square
    matrices = m.d * m.h * (2 * m.n + 2 * m.k) + 3 * m.d * m.f
    return attention, rows * 2 * m.l * matrices, rows * 2 * m.l * m.d * m.f


@pytest.mark.parametrize(
    ("remat", "split"),
    [("full", "fsdp8"), *((remat, "fsdp2-seq2-tp2") for remat in ("none", "dots", "full"))],
)
def test_an_update_executes_what_flops_states_and_what_it_leaves_out(remat, split):
    """`flops.update_flops` counts half the square of attention, norms and biases as if they were
    matrices, a gradient of the patches that nobody asks for, and nothing that is computed again.
    The last product of a layer is never made again: what its gradients need comes before it.
    """
    run = models.run(dataclasses.replace(models.MODEL, remat=remat), lora=Lora())
    m, rows = run.model, run.data.b * run.data.t
    with models.split_as(split):
        found = traced(run)
    attention, layers, last = parts(run)
    seen = (run.data.t + 1) / 2 / run.data.t  # the share of the square that flops counts
    vectors = rows * 2 * (m.l * 2 * m.d + m.d + m.d)  # norms, and the front end's bias
    patches = rows * 2 * run.mel.p * m.d
    again = {"none": 0, "dots": attention, "full": attention + layers - last}[remat]
    stated = flops.update_flops(run) + 3 * (1 - seen) * attention - 3 * vectors - patches
    assert found.dot == stated + again
    assert (found.conv, found.kernel, found.unknown) == (0, 0, ())


def test_micro_batches_execute_the_same():
    run = models.run(lora=Lora())
    with models.split_as("fsdp2-seq2-tp2"):
        whole, halves = traced(run), traced(models.run(lora=Lora(), micro=2))
    assert whole == halves and whole.dot > 0


def test_a_position_of_text_leaves_out_what_the_front_end_executes():
    """It runs at every position; `flops.training` counts it, a gradient of the patches that nobody
    asks for and its bias at speech alone.
    """
    run = models.run(lora=Lora())
    m, rows = run.model, run.data.b * run.data.t
    silent = dataclasses.replace(run, model=dataclasses.replace(m, front="none"))
    with models.one_device():
        executed = traced(run).dot - traced(silent).dot
    stated = flops.training_flops(run, float(rows), 0.0) - flops.training_flops(
        run, 0.0, float(rows)
    )
    assert stated == executed + rows * (2 * run.mel.p * m.d + 3 * 2 * m.d) > 0


@pytest.mark.parametrize(("frame", "head"), [("whole", "norm"), ("clip", "linear")])
def test_a_teacher_executes_what_flops_states(frame, head):
    """`flops.distillation_flops` counts norms and biases as if they were matrices, and of a row of
    clips the scores of a window, where the whole row's are made.
    """
    w = Whisper(d=16, n=2, f=24, l=2, positions=12)
    plain = models.run(lora=Lora(), mel=Mel(kind="whisper", r=8, normalize="none"))
    cfg = Distill(teacher="whisper", whisper=w, frame=frame, windows=3, head=head)
    run = dataclasses.replace(plain, distill=cfg)
    with models.one_device():
        added = traced(run).dot - traced(plain).dot
    rows, t = run.data.b, run.data.t
    heard = 3 * w.positions if frame == "whole" else 4 * t
    vectors = heard * 2 * (w.l * (8 * w.d + w.f) + 5 * w.d)
    vectors += t * 3 * 2 * 2 * run.model.d * (head == "norm")
    unseen = 0 if frame == "whole" else heard * 4 * w.l * w.d * (heard - w.positions)
    assert added == flops.distillation_flops(run) + rows * (unseen - vectors)
