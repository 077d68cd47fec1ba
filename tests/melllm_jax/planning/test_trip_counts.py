import pytest

from melllm_jax.planning import hlo_text, trip_counts

# A scan of 3 inside a scan of 5, from a program for TPU v5e: the inner loop's step of 1 is handed
# down through the outer loop's carry.
NESTED = """HloModule jit_f, num_partitions=1

%inner_body (q: (s32[], bf16[8], s32[])) -> (s32[], bf16[8], s32[]) {
  %q = (s32[]{:T(128)}, bf16[8]{0}, s32[]) parameter(0)
  %q.0 = s32[] get-tuple-element(%q), index=0
  %q.1 = bf16[8]{0} get-tuple-element(%q), index=1
  %q.2 = s32[] get-tuple-element(%q), index=2
  %copy.2 = s32[] copy(%q.0)
  %add.2 = s32[] add(%q.2, %copy.2)
  ROOT %next.2 = (s32[], bf16[8]{0}, s32[]) tuple(%add.2, %q.1, %q.2)
}

%inner_test (r: (s32[], bf16[8], s32[])) -> pred[] {
  %r = (s32[], bf16[8]{0}, s32[]) parameter(0)
  %three = s32[] constant(3)
  %r.0 = s32[] get-tuple-element(%r), index=0
  ROOT %lt.2 = pred[] compare(%r.0, %three), direction=LT
}

%outer_body (p: (s32[], bf16[8], s32[], s32[])) -> (s32[], bf16[8], s32[], s32[]) {
  %p = (s32[], bf16[8]{0}, s32[], s32[]) parameter(0)
  %p.0 = s32[] get-tuple-element(%p), index=0
  %p.1 = bf16[8]{0} get-tuple-element(%p), index=1
  %p.2 = s32[] get-tuple-element(%p), index=2
  %p.3 = s32[] get-tuple-element(%p), index=3
  %one = s32[] constant(1)
  %zero = s32[] constant(0)
  %copy.1 = s32[] copy(%zero)
  %start.1 = (s32[], bf16[8]{0}, s32[]) tuple(%copy.1, %p.1, %p.2)
  %inner = (s32[], bf16[8]{0}, s32[]) while(%start.1), condition=%inner_test, body=%inner_body
  %inner.1 = bf16[8]{0} get-tuple-element(%inner), index=1
  %add.1 = s32[] add(%p.0, %one)
  ROOT %next.1 = (s32[], bf16[8]{0}, s32[], s32[]) tuple(%add.1, %inner.1, %p.2, %p.3)
}

%outer_test (s: (s32[], bf16[8], s32[], s32[])) -> pred[] {
  %s = (s32[], bf16[8]{0}, s32[], s32[]) parameter(0)
  %s.0 = s32[] get-tuple-element(%s), index=0
  %s.3 = s32[] get-tuple-element(%s), index=3
  ROOT %lt.1 = pred[] compare(%s.0, %s.3), direction=LT
}

ENTRY %main (x: bf16[8]) -> bf16[8] {
  %x = bf16[8]{0} parameter(0)
  %begin = s32[] constant(0)
  %unit = s32[] constant(1)
  %five = s32[] constant(5)
  %start = (s32[], bf16[8]{0}, s32[], s32[]) tuple(%begin, %x, %unit, %five)
  %outer = (s32[], bf16[8]{0}, s32[], s32[]) while(%start), condition=%outer_test, body=%outer_body
  ROOT %y = bf16[8]{0} get-tuple-element(%outer), index=1
}
"""


def turns(text, around, name):
    module = hlo_text.parse_module(text)
    computation = module.computations[around]
    return trip_counts.TripCounts(module).trip_count(computation, computation.instructions[name])


def test_what_xla_says_beside_a_loop_is_taken():
    said = 'body=%outer_body, backend_config={"known_trip_count":{"n":"7"}}'
    assert turns(NESTED.replace("body=%outer_body", said), "main", "outer") == 7


def test_a_loop_is_read_where_nothing_is_said():
    assert turns(NESTED, "main", "outer") == 5
    assert turns(NESTED, "outer_body", "inner") == 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("%begin = s32[] constant(0)", "%begin = s32[] constant(2)", 3),
        ("%one = s32[] constant(1)", "%one = s32[] constant(2)", 3),  # 0, 2, 4
        ("%five = s32[] constant(5)", "%five = s32[] constant(-1)", 0),
        ("%five = s32[] constant(5)", "%five = s32[] custom-call(%x)", None),
        ("tuple(%add.1, %inner.1, %p.2, %p.3)", "tuple(%add.1, %inner.1, %p.2, %add.1)", None),
        ("%add.1 = s32[] add", "%add.1 = s32[] multiply", None),
        ("compare(%s.0, %s.3), direction=LT", "compare(%s.0, %s.3), direction=NE", None),
    ],
    ids=["start", "step", "none", "data", "changing end", "geometric", "unequal"],
)
def test_a_loop_turns_as_its_counter_does(old, new, expected):
    assert old in NESTED
    assert turns(NESTED.replace(old, new), "main", "outer") == expected


def test_a_step_that_a_loop_changes_is_not_known():
    text = NESTED.replace("%inner.1, %p.2, %p.3)", "%inner.1, %p.0, %p.3)")
    assert turns(text, "outer_body", "inner") is None
