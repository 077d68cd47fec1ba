import dataclasses

import pytest
import tyro
from tyro.conf import Positional

from launch.terminal.flags import RunArguments, parse, parse_source, run_arguments
from melllm_jax.config.data import Data, Source
from melllm_jax.config.model import Model
from melllm_jax.config.overrides import fields, override
from melllm_jax.config.run import Optim, Run
from melllm_jax.errors import Mistake

RUN = Run(
    name="tiny",
    model=Model(d=64, n=4, k=2, h=16, f=128, l=2, v=260),
    data=Data(t=64, b=8),
    optim=Optim(steps=10),
)
OWN = ["--workdir", "w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(RunArguments):
    """Train something."""

    workdir: str  # folder of the run
    dry_run: bool = False  # stop before the first update


@dataclasses.dataclass(frozen=True)
class Listing:
    """List something."""

    files: Positional[tuple[str, ...]]  # what to list
    beam_width: int = 4  # hypotheses kept
    rate: float = 1.0  # seconds a file
    json: bool = False  # print one JSON object


def preset(name):
    if name != "tiny":
        raise Mistake(f"unknown preset {name!r}: did you mean tiny?")
    return RUN


def trained(*argv):
    return run_arguments(Training, argv, preset, prog="melllm train", presets=["tiny"])


def listed(*argv, default=None):
    return parse(Listing, argv, prog="melllm list", default=default)


def refusal(call, *argv):
    with pytest.raises(Mistake) as caught:
        call(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_preset_without_flags_is_the_run_itself():
    assert trained("tiny", *OWN) == Training(run=RUN, workdir="w")


@pytest.mark.parametrize(
    "flags,changes",
    [
        (
            [
                *("--model.d", "512"),
                *("--optim.lr", "3e-4"),
                "--optim.weight_decay=0.5",
                *("--model.scan", "False"),
                *("--optim.freeze", "0", "1"),
                *("--optim.kind", "muon"),
                *("--model.rope.theta", "5e5"),
                *("--text.instruction", "Write it down."),
                *("--init", "a/b"),
                *("--seed", "3", "--mesh.tp", "2"),
                *("--steps", "7", "--save-every", "3"),
            ],
            {
                "model.d": 512,
                "optim.lr": 3e-4,
                "optim.weight_decay": 0.5,
                "model.scan": False,
                "optim.freeze": [0, 1],
                "optim.kind": "muon",
                "model.rope.theta": 5e5,
                "text.instruction": "Write it down.",
                "init.path": "a/b",
                "seed": 3,
                "mesh.tp": 2,
                "optim.steps": 7,
                "checkpoints.every": 3,
            },
        ),
        (
            ["--optim.weight-decay", "0.5", "--optim.steps", "7", "--checkpoints.every", "3"],
            {"optim.weight_decay": 0.5, "optim.steps": 7, "checkpoints.every": 3},
        ),
        (["--data.max-reject-share", "0.1"], {"data.max_reject_share": 0.1}),
    ],
)
def test_flags_change_the_run_as_overrides_of_their_names_do(flags, changes):
    assert trained("tiny", *OWN, *flags).run == override(RUN, changes)


def test_flags_of_old_names_set_the_fields_as_they_did():
    old = ["--keep.every", "3", "--keep.last=1", "--keep.milestone", "9"]
    old += ["--keep.log=4", "--keep.score", "5", "--data.bad=0.1"]
    changes = {"checkpoints.every": 3, "checkpoints.last": 1, "checkpoints.milestone": 9}
    changes |= {"metrics.every": 4, "scoring.every": 5, "data.max_reject_share": 0.1}
    assert trained("tiny", *OWN, *old).run == override(RUN, changes)


def test_value_refused_under_an_old_flag_is_told_by_the_new_one():
    line = refusal(trained, "tiny", *OWN, "--data.bad=2")
    assert line == "data.max_reject_share=2.0: must lie in [0, 1]"
    assert "--checkpoints.every: invalid" in refusal(trained, "tiny", *OWN, "--keep.every", "x")


def test_corpora_are_given_by_repeated_data_with_weights():
    args = trained("tiny", "--data", "a/b", *OWN, "--data", "gs://x/y=0.5", "--dry-run")
    assert args.run.data.sources == (Source("a/b", 1.0), Source("gs://x/y", 0.5))
    assert args.dry_run


@pytest.mark.parametrize("text", ["d=heavy", "d=0", "d=-1", "d=nan", "d="])
def test_weight_that_is_no_positive_number_is_refused(text):
    assert text in refusal(parse_source, text)


@pytest.mark.parametrize("text", ["d=-1", "d=1:-1h"])
def test_corpus_that_cannot_be_read_is_told_as_it_was_given(text):
    assert text in refusal(trained, "tiny", *OWN, "--data", text)


def test_folder_whose_name_holds_an_equals_sign_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lang=en").mkdir()
    (tmp_path / "x=2").mkdir()
    there = str(tmp_path / "lang=en")
    for text, source in {
        "lang=en": Source("lang=en"),
        "lang=en=3": Source("lang=en", 3.0),
        "lang=en=3:10h": Source("lang=en", 3.0, hours=10.0),
        "x=2": Source("x=2"),
        "y=2": Source("y", 2.0),
        there: Source(there),
        f"file://{there}": Source(f"file://{there}"),
    }.items():
        assert parse_source(text) == source
    line = refusal(parse_source, "lang=fr")
    assert line.endswith("a folder with = in its name is given as DIR=1: lang=fr=1")


def test_hours_of_a_corpus_follow_its_weight():
    found = trained("tiny", *OWN, "--data", "a=2:0.5h", "--data", "b=c=1:100h").run.data.sources
    assert found == (Source("a", 2.0, hours=0.5), Source("b=c", 1.0, hours=100.0))


@pytest.mark.parametrize("text", ["d=1:10", "d=1:h", "d=1:-1h", "d=1:nanh", "d=:1h", "d=1:1h:2h"])
def test_hours_that_are_none_are_refused(text):
    assert text in refusal(parse_source, text)


def test_help_shows_every_field_with_its_comment_and_the_presets_value(capsys):
    with pytest.raises(SystemExit) as end:
        trained("tiny", "--help")
    assert end.value.code == 0
    told = capsys.readouterr().out
    hidden = {"name", "mel.mean", "mel.invstd", "data.sources"}
    hidden |= {name for name, _ in fields(RUN) if name.endswith("digest")}
    for name, _ in fields(RUN):
        assert (f"--{name.replace('_', '-')} " in told) == (name not in hidden), name
    words = " ".join(told.replace("│", " ").split())
    assert "hidden_size (default: 64)" in words
    assert "--data DIR[=WEIGHT[:HOURSh][:USE]] folder of shards" in words
    assert "--workdir STR folder of the run (required)" in words


def test_help_without_a_preset_lists_the_presets(capsys):
    with pytest.raises(SystemExit) as end:
        trained("--help")
    assert end.value.code == 0
    assert "presets: tiny" in capsys.readouterr().out


def test_help_of_a_plain_command_shows_comments_and_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        listed("-h")
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "List something." in told
    assert "--beam-width INT hypotheses kept (default: 4)" in told
    assert "--json" in told
    assert "--no-json" not in told


@pytest.mark.parametrize(
    "argv,message",
    [
        ([], "no PRESET given: one of tiny"),
        (["--model.d", "5"], "PRESET must come first, before --model.d"),
        (["tinny"], "unknown preset 'tinny': did you mean tiny?"),
        (["tiny", *OWN, "--model.dd", "3"], "unknown flag --model.dd: did you mean --model.d?"),
        (["tiny", "--wrokdir", "w"], "unknown flag --wrokdir: did you mean --workdir?"),
        (
            ["tiny", *OWN, "--optim.clop=1"],
            "unknown flag --optim.clop=1: did you mean --optim.clip?",
        ),
        (["tiny", *OWN, "--text.digest", "f00"], "unknown flag --text.digest"),
        (["tiny", *OWN, "more"], "unexpected argument 'more'"),
        (["tiny"], "missing --workdir"),
        (["tiny", "--workdir"], "'--workdir'"),
        (["tiny", *OWN, "--model.n", "3"], "model.n=3: query heads cannot share k=2"),
        (["tiny", *OWN, "--optim.freeze", "9"], "optim.freeze=(9,): layers run from 0 to 1"),
        (["tiny", *OWN, "--model.d", "x"], "--model.d: invalid literal for int()"),
    ],
)
def test_mistake_on_a_run_is_one_line_that_begins_with_what_is_wrong(argv, message):
    assert message in refusal(trained, *argv)[: len(message) + 40]


def test_value_outside_the_choices_names_flag_value_and_choices():
    line = refusal(trained, "tiny", *OWN, "--optim.kind", "adam")
    assert all(word in line for word in ("--optim.kind", "'adam'", "adamw", "muon"))


def test_plain_command_reads_positionals_and_flags_in_both_spellings():
    want = Listing(files=("a", "b"), beam_width=2, rate=0.5, json=True)
    assert listed("a", "b", "--beam_width", "2", "--rate", "0.5", "--json") == want
    assert listed("--json", "--rate=0.5", "--beam-width=2", "a", "b") == want


def test_default_instance_supplies_what_is_not_said():
    default = Listing(files=("z",), beam_width=9)
    assert listed("--rate", "2", default=default) == dataclasses.replace(default, rate=2.0)


@pytest.mark.parametrize("columns", ["30", "200"])
@pytest.mark.parametrize("unicode", [True, False])
def test_complaint_is_unframed_whatever_the_terminal(columns, unicode, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setitem(tyro._experimental_options, "utf8_boxes", unicode)
    line = refusal(listed, "a", "--beam-width", "two")
    assert line == "--beam-width: invalid literal for int() with base 10: 'two'"


def test_rule_of_a_nested_part_is_reported_without_the_parts_path():
    @dataclasses.dataclass(frozen=True)
    class Nested:
        part: Optim = Optim(steps=1)

    with pytest.raises(Mistake, match=r"^optim.decay=2.0: must lie in \(0, 1\]$"):
        parse(Nested, ["--part.decay", "2"], prog="melllm probe")
