import dataclasses
import json

import pytest

from melllm_jax.checkpoints import run_folder
from melllm_jax.config.data import Source
from melllm_jax.config.overrides import identity, override
from melllm_jax.errors import Fault, Mistake
from tests.support.runs import everything, small_disk, tiny


def test_claim_of_a_new_folder_leaves_the_run_to_read(tmp_path):
    run = tiny("corpus")
    run_folder.claim(str(tmp_path / "a/b"), run)
    assert run_folder.read_run(str(tmp_path / "a/b")) == run
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["run.json"]


def test_claim_by_another_run_names_what_differs_and_touches_nothing(tmp_path):
    run = tiny("corpus")
    run_folder.claim(str(tmp_path), run)
    before = everything(tmp_path)
    other = override(
        run, {"model.d": 16, "optim.lr": 0.5, "checkpoints.every": 9, "data.threads": 7}
    )
    with pytest.raises(Mistake) as mistake:
        run_folder.claim(str(tmp_path), other)
    assert str(mistake.value) == (
        f"workdir={tmp_path}: belongs to run {identity(run)}, not {identity(other)}; "
        "they differ in model.d=16 (it has 8), optim.lr=0.5 (it has 0.001)"
    )
    assert everything(tmp_path) == before


def over(run, *sources, **data):
    return dataclasses.replace(run, data=dataclasses.replace(run.data, sources=sources, **data))


@pytest.mark.parametrize(
    ("sources", "named"),
    [
        ([Source("moved", digest="y")], "data.sources.moved=y (it has None)"),
        ([Source("a", digest="y"), Source("b", digest="z")], "data.sources.a=y (it has x)"),
        ([Source("a", digest="x", hours=5.0)], "data.sources.a=5 h of x (it has x)"),
    ],
)
def test_claim_by_a_run_on_other_data_names_the_source(tmp_path, sources, named):
    run = over(tiny("corpus"), Source("a", digest="x"), Source("b", digest="z"))
    run_folder.claim(str(tmp_path), run)
    before = everything(tmp_path)
    with pytest.raises(Mistake) as mistake:
        run_folder.claim(str(tmp_path), over(run, *sources))
    assert named in str(mistake.value).partition("they differ in ")[2]
    assert everything(tmp_path) == before


def test_claim_by_a_run_with_another_mixture_is_granted_and_written_down(tmp_path):
    run = over(tiny("corpus"), Source("a", digest="x"), Source("b", digest="z"))
    run_folder.claim(str(tmp_path), run)
    moved = Source("moved", 3.0, digest="x")
    other = over(run, moved, Source("c", digest="w"), temperature=2.0, epochs=4)
    run_folder.claim(str(tmp_path), other)
    assert run_folder.read_run(str(tmp_path)) == other
    assert identity(run) != identity(other)


def test_claim_changed_only_in_where_it_runs_is_granted_and_written_down(tmp_path):
    run = tiny("corpus")
    run_folder.claim(str(tmp_path), run)
    other = override(run, {"checkpoints.every": 9, "mesh.tp": 2, "data.threads": 7})
    run_folder.claim(str(tmp_path), other)
    assert run_folder.read_run(str(tmp_path)) == other


def test_claim_of_a_folder_that_was_written_under_old_names_of_fields_is_granted(tmp_path):
    run = override(tiny("corpus"), {"data.max_reject_share": 0.25})
    run_folder.claim(str(tmp_path), run)
    tree = json.loads((tmp_path / "run.json").read_text())
    tree["data"]["bad"] = tree["data"].pop("max_reject_share")
    tree["keep"] = tree.pop("checkpoints")
    tree["keep"] |= {"log": tree.pop("metrics")["every"], "score": tree.pop("scoring")["every"]}
    (tmp_path / "run.json").write_text(json.dumps(tree))
    assert run_folder.read_run(str(tmp_path)) == run
    run_folder.verify_claim(str(tmp_path), run)
    with pytest.raises(Mistake, match=r"they differ in data.max_reject_share=0.5 \(it has 0.25\)"):
        run_folder.claim(str(tmp_path), override(run, {"data.max_reject_share": 0.5}))
    run_folder.claim(str(tmp_path), run)


def test_claimed_by_another_host_is_found_by_the_same_run_alone(tmp_path):
    run = tiny("corpus")
    with pytest.raises(Mistake, match=r"not what process 0 writes to: all hosts must share it"):
        run_folder.verify_claim(str(tmp_path), run)
    run_folder.claim(str(tmp_path), run)
    run_folder.verify_claim(str(tmp_path), override(run, {"data.threads": 7}))
    with pytest.raises(Mistake, match=r"they differ in seed=3 \(it has 0\)"):
        run_folder.verify_claim(str(tmp_path), override(run, {"seed": 3}))


def test_read_of_a_folder_without_a_run_is_a_mistake(tmp_path):
    with pytest.raises(Mistake, match=r"run=.*: holds no run.json"):
        run_folder.read_run(str(tmp_path))


def test_claim_of_a_file_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match=r"file/run.json: cannot be written: "):
        run_folder.claim(str(tmp_path / "file"), tiny("corpus"))


def test_claim_on_a_full_disk_is_a_fault_and_keeps_the_run_that_was_there(tmp_path):
    run = tiny("corpus")
    with small_disk(tmp_path / "disk", 16) as disk:
        run_folder.claim(str(disk), run)
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(bytes(100_000))
        with pytest.raises(Fault, match=r"run.json: cannot be written: No space left"):
            run_folder.claim(str(disk), override(run, {"checkpoints.every": 9}))
        assert run_folder.read_run(str(disk)) == run


def test_claim_of_a_bucket_is_refused_and_makes_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Mistake, match=r"^workdir=gs://b/run: a run writes to a disk"):
        run_folder.claim("gs://b/run", tiny("corpus"))
    assert list(tmp_path.iterdir()) == []
