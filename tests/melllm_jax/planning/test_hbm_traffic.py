import pytest

from melllm_jax.planning import hbm_traffic, hlo_text

STACK, LAYER = 6 * 32 * 64, 32 * 64  # numbers of a stacked array and of one of its layers
# Fused computations as TPU and GPU programs of a scan over six layers have them, cut down.
FUSED = """
%read_layer (p0: f32[6,32,64], p1: s32[]) -> bf16[32,64] {
  %p0 = f32[6,32,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,32,64]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,32,64}
  %flat = f32[32,64]{1,0} bitcast(%slice)
  ROOT %narrow = bf16[32,64]{1,0} convert(%flat)
}

%read_converted (p0: f32[6,32,64], p1: s32[]) -> bf16[1,32,64] {
  %p0 = f32[6,32,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %narrow = bf16[6,32,64]{2,1,0} convert(%p0)
  ROOT %slice = bf16[1,32,64]{2,1,0} dynamic-slice(%narrow, %p1, %zero, %zero)
}

%read_twice (p0: f32[6,32,64], p1: s32[]) -> f32[1,32,64] {
  %p0 = f32[6,32,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,32,64]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero)
  %sum = f32[] reduce(%p0, %zero), dimensions={0,1,2}, to_apply=%add
  %spread = f32[1,32,64]{2,1,0} broadcast(%sum), dimensions={}
  ROOT %add = f32[1,32,64]{2,1,0} add(%slice, %spread)
}

%write_layer (p0: f32[6,32,64], p1: s32[], p2: f32[32,64]) -> f32[6,32,64] {
  %p0 = f32[6,32,64]{2,1,0} parameter(0)
  %p2 = f32[32,64]{1,0} parameter(2)
  %tall = f32[1,32,64]{2,1,0} bitcast(%p2)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %put = f32[6,32,64]{2,1,0} dynamic-update-slice(%p0, %tall, %p1, %zero, %zero)
}

%write_and_return (p0: f32[6,32,64], p1: s32[], p2: f32[32,64]) -> (f32[6,32,64], f32[32,64]) {
  %p0 = f32[6,32,64]{2,1,0} parameter(0)
  %p2 = f32[32,64]{1,0} parameter(2)
  %twice = f32[32,64]{1,0} add(%p2, %p2)
  %tall = f32[1,32,64]{2,1,0} bitcast(%twice)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %put = f32[6,32,64]{2,1,0} dynamic-update-slice(%p0, %tall, %p1, %zero, %zero)
  %same = f32[6,32,64]{2,1,0} bitcast(%put)
  ROOT %both = (f32[6,32,64]{2,1,0}, f32[32,64]{1,0}) tuple(%same, %twice)
}

%write_and_convert (p0: f32[6,32,64], p1: s32[], p2: f32[1,32,64]) -> bf16[6,32,64] {
  %p0 = f32[6,32,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[1,32,64]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %put = f32[6,32,64]{2,1,0} dynamic-update-slice(%p0, %p2, %p1, %zero, %zero)
  ROOT %narrow = bf16[6,32,64]{2,1,0} convert(%put)
}

%nested (p0: f32[6,32,64], p1: s32[]) -> f32[32,64] {
  %p0 = f32[6,32,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %inner = bf16[32,64]{1,0} fusion(%p0, %p1), kind=kLoop, calls=%read_layer
  ROOT %wide = f32[32,64]{1,0} convert(%inner)
}

%slice_away (p0: f32[6,32,64]) -> f32[2,32,64] {
  %p0 = f32[6,32,64]{2,1,0} parameter(0)
  ROOT %slice = f32[2,32,64]{2,1,0:S(1)} slice(%p0), slice={[0:2], [0:32], [0:64]}
}

%start (p0: bf16[32,64]) -> (bf16[32,64], bf16[32,128], u32[]) {
  %p0 = bf16[32,64]{1,0} parameter(0)
  %whole = bf16[32,128]{1,0} all-gather(%p0), replica_groups={{0,1}}, dimensions={1}, \
frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[32,64]{1,0}, bf16[32,128]{1,0}, u32[]) custom-call(%whole), \
custom_call_target="AsyncCollectiveStart"
}

%beside (p0: bf16[32,64], p1: bf16[32,128], p2: u32[], p3: f32[32,64]) -> \
(f32[32,64], bf16[32,64], bf16[32,128], u32[]) {
  %p0 = bf16[32,64]{1,0} parameter(0)
  %p1 = bf16[32,128]{1,0} parameter(1)
  %p2 = u32[] parameter(2)
  %p3 = f32[32,64]{1,0} parameter(3)
  %whole = bf16[32,128]{1,0} all-gather(%p0), replica_groups={{0,1}}, dimensions={1}, \
frontend_attributes={chain_id="0"}
  %more = f32[32,64]{1,0} exponential(%p3)
  ROOT %t = (f32[32,64]{1,0}, bf16[32,64]{1,0}, bf16[32,128]{1,0}, u32[]) \
tuple(%more, %p0, %whole, %p2)
}

%end (p0: bf16[32,64], p1: bf16[32,128], p2: u32[]) -> bf16[32,128] {
  %p0 = bf16[32,64]{1,0} parameter(0)
  %p1 = bf16[32,128]{1,0} parameter(1)
  %p2 = u32[] parameter(2)
  %whole = bf16[32,128]{1,0} all-gather(%p0), replica_groups={{0,1}}, dimensions={1}, \
frontend_attributes={chain_id="0"}
  ROOT %c = bf16[32,128]{1,0} custom-call(%p0, %p1, %whole, %p2), \
custom_call_target="AsyncCollectiveDone"
}
"""
# What the instructions of these tests read; n is no power of two, so that sums are told apart.
GIVEN = """
  %stack = f32[6,32,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %layer = f32[32,64]{1,0} parameter(2)
  %row = f32[1,32,64]{2,1,0} parameter(3)
  %half = bf16[32,64]{1,0} parameter(4)
  %whole = bf16[32,128]{1,0} parameter(5)
  %flag = u32[]{:S(2)} parameter(6)
  %near = f32[1000]{0:S(1)} parameter(7)
  %far = f32[1000]{0} parameter(8)
  %host = f32[1000]{0:S(5)} parameter(9)
  %token = token[] parameter(10)
"""


def moved(line, tiled=""):
    """Bytes of the instruction `line`; `tiled` is a layout that TPU programs alone print."""
    text = (
        f"HloModule m {tiled}\n{FUSED}\nENTRY %main () -> f32[] {{{GIVEN}  ROOT %y = {line}\n}}\n"
    )
    module = hlo_text.parse_module(text)
    main = module.computations["main"]
    return hbm_traffic.hbm_bytes(module, main, main.instructions["y"])


def on_tpu(line):
    return moved(line, "{0:T(8,128)}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("f32[1000]{0} add(%far, %far)", 8000),  # an operand that is used twice is read once
        ("f32[1000]{0} copy(%far)", 8000),
        ("f32[1000]{0} bitcast(%far)", 0),
        ("f32[1000]{0} iota(), iota_dimension=0", 4000),
        ("(f32[1000]{0}, u32[]) tuple(%far, %flag)", 0),
        ("f32[1,32,64]{2,1,0} dynamic-slice(%stack, %i)", 8 * LAYER),
        ("f32[2,32,64]{2,1,0} slice(%stack)", 2 * 8 * LAYER),
        ("f32[6,32,64]{2,1,0} dynamic-update-slice(%stack, %row, %i)", 8 * LAYER),
        ("(f32[1000]{0}, f32[1000]{0}, u32[]) copy-start(%far)", 8000),
        ("f32[1000]{0} copy-done(%far)", 0),
        ("f32[1000]{0} all-reduce(%far), to_apply=%add", 8000),
        ("(f32[1000]{0}, f32[4000]{0}) all-gather-start(%far)", 20_000),
        ("(f32[1000]{0}, u32[], token[]) send(%far, %token)", 4000),
        ("(f32[1000]{0}, u32[], token[]) recv(%token)", 4000),
        ('f32[9]{0} custom-call(%far), custom_call_target="kernel"', 4036),
        ('f32[9]{0} custom-call(), custom_call_target="AllocateBuffer"', 0),
    ],
)
def test_an_instruction_reads_its_operands_and_writes_its_result(line, expected):
    assert moved(line) == on_tpu(line) == expected


def test_on_chip_memory_and_the_hosts_move_nothing():
    assert on_tpu("f32[1000]{0} add(%near, %far)") == 8000
    assert on_tpu("f32[1000]{0:S(1)} add(%near, %host)") == 0
    assert on_tpu("(f32[1000]{0:S(1)}, f32[1000]{0}, u32[]{:S(2)}) copy-start(%far)") == 4000
    assert moved("f32[1000]{0:S(1)} add(%near, %far)") == 12_000  # a GPU's 1 is its own memory
    assert moved("f32[1000]{0:S(5)} add(%host, %far)") == 4000


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bf16[32,64] fusion(%stack, %i), calls=%read_layer", (4 + 2) * LAYER + 4),
        ("f32[32,64] fusion(%stack, %i), calls=%nested", (4 + 4) * LAYER + 4),
        ("bf16[1,32,64] fusion(%stack, %i), calls=%read_converted", (4 + 2) * LAYER + 4),
        ("f32[1,32,64] fusion(%stack, %i), calls=%read_twice", 4 * STACK + 4 * LAYER + 4),
        ("f32[6,32,64] fusion(%stack, %i, %layer), calls=%write_layer", 8 * LAYER + 4),
        (
            "(f32[6,32,64], f32[32,64]) fusion(%stack, %i, %layer), calls=%write_and_return",
            (4 + 4 + 4) * LAYER + 4,
        ),
        (
            "bf16[6,32,64] fusion(%stack, %i, %row), calls=%write_and_convert",
            (4 + 2) * STACK + 4 * LAYER + 4,
        ),
    ],
    ids=["read", "nested", "converted", "twice", "write", "two results", "no place"],
)
def test_a_fusion_moves_the_layer_and_not_the_stack(line, expected):
    """The 4 bytes are the layer's number."""
    assert moved(line) == expected


def test_a_collective_in_fusions_moves_its_bytes_where_it_starts():
    size = 32 * 64 * 2
    start = "(bf16[32,64], bf16[32,128], u32[]{:S(2)}) fusion(%half), calls=%start"
    beside = (
        "(f32[32,64], bf16[32,64], bf16[32,128], u32[]{:S(2)}) "
        "fusion(%half, %whole, %flag, %layer), calls=%beside"
    )
    end = "bf16[32,128] fusion(%half, %whole, %flag), calls=%end"
    assert on_tpu(start) == size + 2 * size
    assert on_tpu(beside) == 2 * 32 * 64 * 4  # what is computed beside it alone
    assert on_tpu(end) == 0


def test_an_asynchronous_call_moves_what_it_wraps():
    line = "((f32[6,32,64]), f32[2,32,64], s32[]) async-start(%stack), calls=%slice_away"
    assert on_tpu(line) == 2 * 4 * LAYER  # read, and put into on-chip memory
