import pytest

from melllm_jax.errors import Fault
from melllm_jax.planning import hlo_text

# From a program for TPU v5e, cut down; `%pair#1` and metadata of several lines are as jax 0.12 and
# Pallas kernels have them.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

FileNames
1 "a.py"

%fused (p.1: bf16[8,128], p.0: s32[]) -> bf16[8,128] {
  %p.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %p.0 = s32[]{:T(128)S(6)} parameter(0)
  ROOT %copy.1 = bf16[8,128]{1,0:T(8,128)(2,1)} copy(%p.1), metadata={op_name="jit(f)/mul (x)"}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[2,8,128]) -> (f32[2,8,128], bf16[]) {
  %x = f32[2,8,128]{2,1,0:T(8,128)} parameter(0)
  %pair = (f32[2,8,128]{2,1,0:T(8,128)}, (u8[3]{0}, /*index=5*/pred[])) custom-call(%x), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"blocks":"{512}"
}}, backend_config={"window_config":{"estimated_cycles":"70"}}
  %call.1 = bf16[] call(%pair#1#1), to_apply=%fused
  ROOT %tuple.1 = (f32[2,8,128]{2,1,0:T(8,128)}, bf16[]) tuple(%x, %call.1)
}
"""


def test_a_module_is_read_as_computations_of_instructions():
    module = hlo_text.parse_module(TEXT)
    assert (module.entry, module.tpu, module.devices) == ("main", True, 4)
    assert list(module.computations) == ["fused", "main"]
    main = module.computations["main"]
    assert main.root.operands == ("x", "call.1")
    assert main.instructions["call.1"].callees("to_apply") == ("fused",)
    assert [p.name for p in module.computations["fused"].parameters] == ["p.0", "p.1"]


def test_a_line_that_goes_on_belongs_to_its_instruction():
    pair = hlo_text.parse_module(TEXT).computations["main"].instructions["pair"]
    assert (pair.op, pair.operands) == ("custom-call", ("x",))
    assert pair.number("estimated_cycles") == 70
    assert pair.number("index") is None
    assert [b.dtype for b in pair.buffers] == ["f32", "u8", "pred"]


def test_an_operand_that_is_part_of_a_tuple_is_spelled_out():
    main = hlo_text.parse_module(TEXT).computations["main"]
    (name,) = main.instructions["call.1"].operands
    part = main.instructions[name]
    assert (part.op, part.index, part.buffers) == (
        "get-tuple-element",
        1,
        (hlo_text.Buffer("pred", ()),),
    )
    assert main.instructions[part.operands[0]].operands == ("pair",)


def test_a_layout_says_in_which_memory_a_buffer_lies():
    fused = hlo_text.parse_module(TEXT).computations["fused"].instructions
    assert [fused[name].buffers[0].space for name in ("p.1", "p.0", "copy.1")] == [1, 6, 0]


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("f32", 4), ("bf16", 2), ("pred", 1), ("s4", 0.5), ("f8e4m3fn", 1), ("c64", 8), ("token", 0)],
)
def test_bytes_follow_from_the_type(dtype, width):
    assert hlo_text.Buffer(dtype, (6, 5)).bytes == 30 * width


def test_text_without_an_entry_is_a_fault():
    with pytest.raises(Fault, match="no HLO module"):
        hlo_text.parse_module(TEXT.replace("ENTRY ", ""))
