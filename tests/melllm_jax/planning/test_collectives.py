import numpy as np
import pytest

from melllm_jax.errors import Fault
from melllm_jax.planning import collectives, hlo_text

SIZES = {"replica": 2, "fsdp": 4, "seq": 1, "tp": 2}
WIRES = collectives.slice_axes(SIZES, 16)


def sent(line, wires=WIRES, **how):
    """What the one instruction of a program, `line`, sends."""
    text = f"HloModule m\n\nENTRY %main () -> f32[] {{\n  ROOT %c = {line}\n}}\n"
    instruction = hlo_text.parse_module(text).computations["main"].instructions["c"]
    return collectives.read_collective(instruction, wires, **{"hidden": False} | how)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", [[0, 2], [1, 3]]),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=2] {'axis_0','axis_2'}", [[0, 1, 2, 3]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", [[0, 3], [1, 2]]),
    ],
)
def test_groups_are_read_in_every_form_that_xla_prints(printed, expected):
    text = f"channel_id=1, replica_groups={printed}, use_global_device_ids=true"
    assert collectives.replica_groups(text, 4).tolist() == expected


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        (("tp",), "[8,2]<=[16]"),
        (("fsdp",), "[4,4]<=[2,4,2]T(0,2,1)"),
        (("replica",), "mesh['r'=2,'rest'=8] {'r'}"),
        (("fsdp", "tp"), "{{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}"),
        (("replica", "fsdp"), "[2,8]<=[8,2]T(1,0)"),
        (("replica", "fsdp", "tp"), "{}"),
        (("fsdp", "tp"), "{{15,8,9,10,11,12,13,14},{0,1,2,4,3,5,6,7}}"),  # the order is no matter
        ((), "[8,2]<=[2,2,4]T(0,2,1)"),  # half of fsdp
    ],
)
def test_groups_are_those_of_a_set_of_axes_or_of_none(axes, spec):
    found = sent(f"f32[100]{{0}} all-reduce(), replica_groups={spec}, to_apply=%add")
    size = int(np.prod([SIZES[axis] for axis in axes])) if axes else 2
    assert (found.axes, found.devices) == (axes, size)
    assert found.bytes == pytest.approx(400 * 2 * (size - 1) / size)


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        ("bf16[64,8]{1,0} all-gather(%x)", "all-gather", 1024 * 3 / 4),
        ("bf16[64,8]{1,0} reduce-scatter(%x)", "reduce-scatter", 4096 * 3 / 4),
        ("bf16[64,8]{1,0} all-to-all(%x)", "all-to-all", 1024 * 3 / 4),
        ("(f32[2], f32[6]) all-reduce(%x, %y)", "all-reduce", 32 * 6 / 4),
        ("(f32[2], f32[8]) all-gather-start(%x)", "all-gather", 32 * 3 / 4),
        (
            "((f32[2], f32[1]), (f32[8], f32[4])) all-gather-start(%x, %y)",
            "all-gather",
            48 * 3 / 4,
        ),
        ("((f32[8]), f32[2]) reduce-scatter-start(%x)", "reduce-scatter", 32 * 3 / 4),
        ("(f32[2], f32[6]) all-reduce-start(%x, %y)", "all-reduce", 32 * 6 / 4),
    ],
)
def test_a_chip_sends_what_a_ring_passes_on(line, kind, expected):
    found = sent(f"{line}, replica_groups=[4,4]<=[2,4,2]T(0,2,1)")
    assert (found.kind, found.axes, found.bytes) == (kind, ("fsdp",), expected)


def test_an_all_reduce_whose_parts_are_kept_apart_is_a_reduce_scatter():
    line = "f32[8]{0} all-reduce(%x), replica_groups=[4,4]<=[2,4,2]T(0,2,1)"
    found = sent(line, scattered=True)
    assert (found.kind, found.bytes) == ("reduce-scatter", 32 * 3 / 4)


def test_a_permutation_runs_over_the_axes_along_which_it_moves():
    ids = np.arange(16).reshape(2, 4, 2)  # replica, fsdp, tp
    pairs = np.stack([ids, np.roll(ids, -1, axis=1)], axis=-1).reshape(-1, 2)
    ring = ",".join(f"{{{source},{target}}}" for source, target in pairs)
    start = "(f32[8], f32[8], u32[], u32[]) collective-permute-start(%x)"
    line = f"{start}, source_target_pairs={{{ring}}}"
    found = sent(line, hidden=True)
    assert found == collectives.Collective("collective-permute", ("fsdp",), 4, True, 1, 32.0)


@pytest.mark.parametrize(
    "line",
    ["f32[8] add(%x, %y)", "f32[8] all-reduce(%x), replica_groups=[16,1]<=[16]", "f32[8] send(%x)"],
)
def test_nothing_is_sent_by_others_or_by_groups_of_one(line):
    assert sent(line) is None


def test_slices_exchange_through_the_host_over_the_axes_before_the_slices_own():
    wires = collectives.slice_axes({"replica": 2, "fsdp": 2, "seq": 1, "tp": 2}, 4)
    line = (
        "(bf16[512,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%x, %after), "
        "channel_id=2, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    found = sent(line, wires)
    assert found == collectives.Collective(
        "all-reduce", ("replica",), 2, True, 1, 512 * 8 * 128 * 2.0
    )
    gathered = sent(line.replace("ALL_REDUCE", "ALL_GATHER"), wires)
    assert (gathered.kind, gathered.bytes) == ("all-gather", 512 * 8 * 128 * 2.0)
    one = sent(line.replace("ALL_REDUCE", "ONE_TO_ONE"), wires)
    assert (one.kind, one.bytes) == ("collective-permute", 512 * 8 * 128 * 2.0)
    inside = sent("f32[8] all-gather(%x), replica_groups={{0,2},{1,3}}", wires)
    assert (inside.axes, inside.bytes) == (("fsdp",), 16.0)


def test_a_mesh_of_other_devices_is_a_fault():
    with pytest.raises(Fault, match="a program for 6 devices is not for a mesh of"):
        collectives.slice_axes(SIZES, 6)
