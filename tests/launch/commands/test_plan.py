"""`melllm plan` through its command line."""

import dataclasses
import json

import pytest

from launch import cli
from launch.commands import plan as command
from melllm_jax import chips, flops
from melllm_jax.config.overrides import override
from melllm_jax.errors import Fault
from melllm_jax.planning import plan, topology
from melllm_jax.planning.collectives import Collective
from melllm_jax.presets import catalog
from tests.support import plans

TINY = [
    *("--topology", "v5e:2x2", "--optim.compute", "bfloat16", "--data.t", "128", "--data.b", "8"),
    *("--model.d", "256", "--model.n", "4", "--model.k", "2", "--model.h", "128"),
    *("--model.f", "512", "--model.l", "1", "--model.v", "1024", "--scoring.every", "0"),
]

pytestmark = pytest.mark.libtpu


def planned(capsys, *words, status=0):
    """(standard output, standard error) of `melllm plan` with these words."""
    assert cli.main(["plan", *words]) == status
    return capsys.readouterr()


def refused(capsys, *words):
    """What a refusal says, after "melllm plan: error: "."""
    out, err = planned(capsys, *words, status=2)
    assert (out, err.count("\n"), err[-1]) == ("", 1, "\n")
    return err.removeprefix("melllm plan: error: ").rstrip("\n")


def reckoned(capsys, monkeypatch, *words):
    """The figures of a plan by arithmetic, as --json gives them, and standard error."""
    monkeypatch.setattr(topology, "has_compiler", lambda pod: False)
    out, err = planned(capsys, *words, "--json")
    assert out.count("\n") == 1
    return json.loads(out), err


def test_without_a_topology_the_kinds_are_named(capsys):
    assert refused(capsys, "digits") == (
        "no --topology given: one of v4, v5e, v5p, v6e, tpu7x, a100, h100, h200 and its size: "
        "v5p:4x4x4"
    )


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--topology", "v9:2x2"], "topology=v9:2x2: is none of v4:(2x2x1 to 12x16x16), v5e:("),
        (["--topology", "h100:8x8", "--slices", "2"], "slices=2: GPUs have none; say more hosts"),
        (["--slices", "0"], "mesh.slices=0: must be positive"),
        (["--price", "-1"], "price=-1.0: must be 0 or more"),
        (["--audio", "-0.5"], "audio=-0.5: must be 0 or more hours"),
        (["--speech", "0"], "speech=0.0: must lie in (0, 1]"),
        (["--speech", "1.5"], "speech=1.5: must lie in (0, 1]"),
        (["--tries", "0"], "tries=0: must be positive"),
        (["--mesh.fsdp", "3"], "the product must be the 256 devices of v5e:16x16"),
        (["--mesh.fsdp", "64"], "the product must be the 256 devices of v5e:16x16"),
        (["--slices", "3", "--mesh.fsdp", "384"], "mesh.replica=2: must be a multiple of the 3 s"),
        (["--mesh.tp", "16", "--mesh.fsdp", "8"], "mesh.tp=16: does not divide model.n=24"),
        (["--data.b", "128"], "mesh replica=2 × fsdp=128: does not divide the 128 rows"),
        (["--searchh"], "unknown flag --searchh: did you mean --search?"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
@pytest.mark.parametrize("compiles", [True, False], ids=["compiled", "arithmetic"])
def test_what_cannot_be_is_refused_in_one_line(capsys, monkeypatch, words, rule, compiles):
    if compiles:
        pytest.importorskip("libtpu", reason="needs the extra `plan`")
    monkeypatch.setattr(topology, "has_compiler", lambda pod: compiles)
    assert rule in refused(capsys, "mel_llm_asr_v5e_256", *words)


def test_topology_and_slices_are_the_meshs(capsys, monkeypatch):
    words = ["mel_llm_asr", "--topology", "v5p:4x4x4", "--slices", "2", "--mesh.replica", "2"]
    told, _ = reckoned(capsys, monkeypatch, *words, "--data.b", "128")
    assert (told["pod"], told["chips"]) == ("2 × v5p:4x4x4", 128)
    assert told["mesh"] == {"replica": 2, "fsdp": 64, "seq": 1, "tp": 1}


def test_where_nothing_compiles_arithmetic_says_so(capsys, monkeypatch):
    told, err = reckoned(capsys, monkeypatch, "mel_llm_asr_v5p_128")
    assert (told["source"], told["compile_seconds"], told["seconds"]["xla"]) == (
        "arithmetic",
        0.0,
        None,
    )
    assert err == (
        "melllm plan: nothing here compiles for v5p:4x4x4 (pip install 'melllm_jax[plan]'): "
        "arithmetic alone\n"
    )
    out, _ = planned(capsys, "mel_llm_asr_v5p_128")
    assert "  arithmetic alone; every time and rate below is an estimate\n" in out
    _, err = reckoned(capsys, monkeypatch, "mel_llm_asr_h100_64")
    assert "pip install 'melllm_jax[plan-gpu]'" in err


def test_hours_and_cost_follow_from_the_step(capsys, monkeypatch):
    name = "mel_llm_asr_v5p_128"
    told, _ = reckoned(capsys, monkeypatch, name)
    steps = catalog.preset(name).optim.steps
    assert (told["updates"], told["cost"], told["estimate"]) == (steps, None, True)
    assert told["hours"] == pytest.approx(steps * told["step_seconds"] / 3600)
    assert told["chip_hours"] == pytest.approx(64 * told["hours"])


def test_rates_and_cost_of_a_plan_are_those_by_hand(capsys, monkeypatch):
    seconds = {"matmul": 0.25, "hbm": 0.5, "ici": 0.25, "dcn": 0.0}
    known = {"positions": 1000, "chips": 4, "useful_flops": 1e12, "peak": 1e13, "limits": seconds}
    one = dataclasses.replace(plans.rough(), **known)
    monkeypatch.setattr(command, "plan_run", lambda run, pod: one)
    words = [*TINY, "--mel.r", "8", "--audio", "10", "--speech", "0.5", "--price", "3"]
    told, _ = reckoned(capsys, monkeypatch, "digits", *words)
    # Half of 1,000 positions of 80 ms are 40 s of sound an update: 900 of them are 10 h.
    expected = {
        "step_seconds": 0.5,
        "step_seconds_nothing_hidden": 1.0,
        "mfu": 0.2,
        "mfu_nothing_hidden": 0.1,
        "tokens_per_second": 2000,
        "audio_hours_per_second": 80 / 3600,
        "updates": 900,
        "hours": 0.125,
        "chip_hours": 0.5,
        "cost": 1.5,
    }
    assert {name: told[name] for name in expected} == pytest.approx(expected)


def test_search_by_arithmetic_prints_what_fits_first_and_the_fastest_of_it(capsys, monkeypatch):
    words = ["mel_llm_asr_full_v5e_256", "--search", "--tries", "1000"]
    told, _ = reckoned(capsys, monkeypatch, *words)
    ways = told["plans"]
    assert len(ways) > 100
    fits = [way["fits"] for way in ways]
    assert fits == sorted(fits, reverse=True)
    assert {True, False} == set(fits)
    keys = [
        (not way["fits"], way["step_seconds"], way["step_seconds_nothing_hidden"]) for way in ways
    ]
    assert keys == sorted(keys)
    written = {json.dumps([way["mesh"], way["remat"], way["micro"]]) for way in ways}
    assert len(written) == len(ways)


def test_search_of_two_devices_a_chip_has_meshes_of_all_devices(capsys, monkeypatch):
    words = ["mel_llm_asr", "--topology", "tpu7x:2x2x2", "--search", "--tries", "3"]
    told, _ = reckoned(capsys, monkeypatch, *words)
    assert len(told["plans"]) == 3
    for way in told["plans"]:
        sizes = way["mesh"]
        assert sizes["replica"] * sizes["fsdp"] * sizes["seq"] * sizes["tp"] == 16


def test_search_where_no_mesh_splits_the_run_says_so(capsys):
    words = ["mel_llm_asr", "--topology", "v5e:4x4", "--data.b", "3", "--data.t", "100"]
    said = refused(capsys, *words, "--search")
    assert said == "search: no mesh of 16 chips splits data.b=3 evenly"


def test_search_compiles_the_most_promising_and_prints_each_on_a_line(capsys, monkeypatch):
    monkeypatch.setattr(topology, "has_compiler", lambda pod: True)

    def compiled(run, pod):
        found = plan.estimate_plan(run, pod, plan.mesh_sizes(run, pod))
        return dataclasses.replace(found, source="compiled")

    monkeypatch.setattr(plan, "compile_plan", compiled)
    out, _ = planned(capsys, "digits", *TINY, "--search", "--tries", "1")
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0] == "digits on v5e:2x2, estimates (compiled), best first:"
    assert " GiB fits " in lines[1]
    assert "MFU ≤ " in lines[1]


def as_compiled(**changes):
    """A plan as if compiled: planning/test_plan.py compiles this run, and one that is too big."""
    rough = plans.rough()
    memory = plan.Memory(rough.memory.capacity, 0.1 * 2**30, 0.01 * 2**30, 0.08 * 2**30, 10.0**7)
    known = {"compile_seconds": 1.5, "xla_seconds": 0.25, "executed_flops": 2 * rough.useful_flops}
    sent = Collective("all-gather", ("fsdp",), 4, True, 6, 3e6)
    known |= {"source": "compiled", "memory": memory, "collectives": (sent,)}
    return dataclasses.replace(rough, **known | changes)


def test_a_compiled_plan_is_told_in_lines_and_the_same_in_json(capsys, monkeypatch):
    monkeypatch.setattr(topology, "has_compiler", lambda pod: True)
    found = as_compiled()
    monkeypatch.setattr(plan, "compile_plan", lambda run, pod: found)
    out, err = planned(capsys, "digits", *TINY)
    assert err == ""
    assert out.startswith("test on v5e:2x2: fsdp 4, remat full, micro 1\n  compiled in ")
    assert f"parameters   {found.total:,}, trained {found.total:,}\n" in out
    assert " GiB: fits (arguments 0.01, " in out
    assert "collective   all-gather over fsdp (4): " in out
    assert f": limited by {found.limit}\n" in out
    out, err = planned(capsys, "digits", *TINY, "--json")
    assert (out.count("\n"), err) == (1, "")
    told = json.loads(out)
    assert told["hbm"]["needed"] == found.memory.needed
    assert told["flops"] == {
        "useful": found.useful_flops,
        "distillation": 0,
        "executed": found.executed_flops,
    }
    assert told["seconds"] == dict(found.limits) | {"xla": found.xla_seconds}
    assert [each["kind"] for each in told["collectives"]] == [one.kind for one in found.collectives]


def test_what_does_not_fit_is_told_and_is_no_failure(capsys, monkeypatch):
    monkeypatch.setattr(topology, "has_compiler", lambda pod: True)
    capacity = chips.CHIPS["TPU v5 lite"].hbm
    memory = plan.Memory(capacity, 2.5 * capacity, 0.01 * 2**30, None, None)
    found = as_compiled(fits=False, memory=memory, collectives=())
    monkeypatch.setattr(plan, "compile_plan", lambda run, pod: found)
    out, _ = planned(capsys, "digits", *TINY)
    assert " GiB: DOES NOT FIT " in out
    out, _ = planned(capsys, "digits", *TINY, "--json")
    told = json.loads(out)
    assert (told["fits"], told["source"]) == (False, "compiled")
    assert capacity == told["hbm"]["capacity"] < told["hbm"]["needed"] == 2.5 * capacity
    assert told["hbm"]["activations"] is None


def test_the_flags_reach_the_run_that_is_planned(capsys, monkeypatch):
    told, _ = reckoned(capsys, monkeypatch, "digits", *TINY, "--optim.micro", "2")
    run = override(
        catalog.preset("digits"),
        {"model.d": 256, "model.n": 4, "model.k": 2, "model.h": 128, "model.f": 512}
        | {"model.l": 1, "model.v": 1024},
    )
    assert told["parameters"]["total"] == flops.count_parameters(run).total
    assert (told["preset"], told["micro"], told["positions"]) == ("digits", 2, 8 * 128)


def test_a_teacher_is_told_apart_from_the_model(capsys, monkeypatch):
    words = ["aura_smollm2", "--topology", "v5e:1x2", "--optim.compute", "bfloat16"]
    told, _ = reckoned(capsys, monkeypatch, *words)
    run = catalog.preset("aura_smollm2")
    count = flops.count_parameters(run)
    assert told["parameters"] == {
        "total": count.total,
        "trained": count.front + count.lora + count.align,
        "teacher": flops.teacher_parameters(run),
    }
    assert told["flops"]["distillation"] == flops.distillation_flops(run)
    assert told["flops"]["executed"] >= sum(told["flops"][x] for x in ("useful", "distillation"))
    out, _ = planned(capsys, *words)
    assert f"teacher      {flops.teacher_parameters(run):,} parameters, frozen; " in out
    plain, _ = planned(capsys, "smollm2_asr", *words[1:])
    assert "teacher" not in plain


def test_search_leaves_out_what_the_compiler_fails_at_and_says_so(capsys, monkeypatch):
    """libtpu 0.0.52 ends some programs in an error of its own."""
    monkeypatch.setattr(topology, "has_compiler", lambda pod: True)
    seen = []

    def compiled(run, pod):
        seen.append(run)
        if len(seen) % 2:
            raise Fault("INTERNAL: overlaps")
        return plan.estimate_plan(run, pod, plan.mesh_sizes(run, pod))

    monkeypatch.setattr(plan, "compile_plan", compiled)
    words = ["digits", *TINY, "--search", "--json"]
    out, err = planned(capsys, *words, "--tries", "4")
    assert len(json.loads(out)["plans"]) == 2
    assert err.count("left out: ") == err.count(": INTERNAL: overlaps\n") == 2
    seen.clear()
    assert cli.main(["plan", *words, "--tries", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "melllm plan: error: search: none of 1 ways compiles: fsdp 2 × tp 2, " in err
