import dataclasses
import math
import subprocess
import sys

from grain import experimental
import numpy as np
import pytest

from data_pipelines.corpora.corpus import indices_longest_first, open_corpus, split_digest
from data_pipelines.examples.asr_example import ExampleMaker
from data_pipelines.loader.pipeline import eval_examples, train_batches
from data_pipelines.loader.reject_counts import stream_counts
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.reject import Reject
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.batch import Batch
from melllm_jax.config.data import Augment
from melllm_jax.errors import Mistake
from tests.support.corpora import MEL, heard_once, run_over, spelled, write_corpus
from tests.support.paths import ROOT

once = pytest.fixture(scope="module", autouse=True)(heard_once)
BYTES = load_tokenizer("bytes")
GONE = {"audio_filepath": "none.flac"}
# One lane, one bin: rows hold the examples in the order of the stream.
ORDERED = {"bins": 1, "t": 64, "lanes": 1}


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """Forty utterances, each with a text of its own."""
    return write_corpus(tmp_path_factory.mktemp("forty"), 40, seconds=0.15)


def pieces(batch):
    """The examples in a batch, row after row, as (text, columns)."""
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segments[row].max() + 1):
            inside = batch.segments[row] == segment
            columns = {name: getattr(batch, name)[row][inside] for name in Batch._fields}
            yield BYTES.decode(columns["tokens"].tolist()), columns


def stream(run, count, lanes=None):
    """The first `count` examples of some lanes as (text, columns)."""
    found = []
    for batch in train_batches(run, BYTES, lanes=lanes):
        found.extend(pieces(batch))
        if len(found) >= count:
            return found[:count]
    raise AssertionError("the stream ended")


def texts(run, count, lanes=None):
    return [text for text, _ in stream(run, count, lanes)]


@pytest.fixture(scope="module")
def batch(forty):
    """The first of a run."""
    return next(iter(train_batches(run_over(forty), BYTES)))


def test_batch_has_the_shapes_and_types_of_the_contract(batch):
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch._asdict().items()}
    plain = ((4, 96), "int32")
    assert shapes == dict.fromkeys(Batch._fields, plain) | {
        "patches": ((4, 96, 64), "bfloat16"),
        "loss_weight": ((4, 96), "float32"),
    }


def test_batch_of_half_the_lanes_has_half_the_rows(forty):
    batch = next(iter(train_batches(run_over(forty), BYTES, lanes=[1, 3])))
    assert batch.tokens.shape == (2, 96)


def test_batch_numbers_its_segments_and_places_from_left_to_right(batch):
    for segments, positions in zip(batch.segments, batch.positions, strict=True):
        used = np.count_nonzero(segments)
        starts = np.flatnonzero(positions[:used] == 0)
        assert segments[starts].tolist() == list(range(1, len(starts) + 1))
        assert len(starts) > 1
        assert set(np.diff(segments[:used]).tolist()) == {0, 1}
        assert (np.diff(positions[:used])[np.diff(segments[:used]) == 0] == 1).all()
        assert not segments[used:].any()


def test_batch_is_zero_where_it_is_padding(batch):
    padding = batch.segments == 0
    assert padding.any()
    assert not any(array[padding].astype(bool).any() for array in batch)


def test_batch_holds_every_example_as_it_is_alone(forty):
    run = run_over(forty)
    alone = ExampleMaker(run, BYTES)
    corpus = open_corpus(forty, "train")
    wanted = {
        utterance.text: alone.train((0, utterance), np.random.default_rng(0))
        for utterance in corpus
    }
    found = stream(run, 60)
    assert len({text for text, _ in found}) > 30
    for text, columns in found:
        for name, array in wanted[text].items():
            assert np.array_equal(columns[name], array)


def test_stream_of_one_lane_sees_every_example_once_an_epoch_and_anew(forty):
    found = texts(run_over(forty, **ORDERED), 120)
    epochs = [found[:40], found[40:80], found[80:]]
    assert [sorted(epoch) for epoch in epochs] == [sorted(map(spelled, range(40)))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("count", [2, 4])
def test_stream_of_several_lanes_sees_every_example_once_an_epoch(forty, count):
    run = run_over(forty, **ORDERED | {"lanes": count})
    shares = [texts(run, 80 // count, [lane]) for lane in range(count)]
    for start in (0, 40 // count):
        epoch = [text for share in shares for text in share[start : start + 40 // count]]
        assert sorted(epoch) == sorted(map(spelled, range(40)))


def test_stream_of_two_corpora_gives_each_lane_some_of_both(forty, tmp_path):
    other = write_corpus(tmp_path, 40, seconds=0.15, first=100)
    run = run_over(forty, other, **ORDERED | {"lanes": 2})
    shares = [texts(run, 40, [lane]) for lane in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(texts(run_over(forty, other, **ORDERED), 80))
    first = set(map(spelled, range(40)))
    assert all(10 <= sum(text in first for text in share) <= 30 for share in shares)


def test_stream_of_two_corpora_keeps_to_their_weights(forty, tmp_path):
    other = write_corpus(tmp_path, 7, seconds=0.15, first=100)
    found = stream(run_over(forty, other, weights=[3.0, 1.0], **ORDERED), 100)
    sources = [int(columns["sources"][0]) for _, columns in found]
    assert sources.count(1) == 25
    last = {text for text, columns in found if columns["sources"][0] == 1}
    assert last == set(map(spelled, range(100, 107)))


def test_stream_follows_the_seed_alone(forty):
    runs = [run_over(forty, seed=seed, **ORDERED) for seed in (5, 5, 6)]
    first, again, other = (texts(run, 40) for run in runs)
    threaded = texts(run_over(forty, seed=5, threads=3, ahead=3, **ORDERED), 40)
    assert first == again == threaded
    assert first != other


def test_augmentation_is_the_same_for_any_number_of_lanes(forty):
    fields = {"augment": Augment(mask=1.0), **ORDERED}
    alone = dict(stream(run_over(forty, **fields), 40))
    shared = dict(stream(run_over(forty, **fields | {"lanes": 2}), 20, [0]))
    plain = dict(stream(run_over(forty, **ORDERED), 40))
    assert all(np.array_equal(c["patches"], alone[t]["patches"]) for t, c in shared.items())
    assert sum(np.array_equal(c["patches"], alone[t]["patches"]) for t, c in plain.items()) < 10


def test_augmentation_changes_with_the_seed_and_the_epoch(tmp_path):
    folder = write_corpus(tmp_path, 1)  # one utterance: no seed changes its order

    def patches(seed):
        run = run_over(folder, seed=seed, augment=Augment(mask=1.0), **ORDERED)
        return [columns["patches"].tobytes() for _, columns in stream(run, 4)]

    assert patches(0) == patches(0)
    assert patches(0) != patches(1)
    assert len(set(patches(0))) > 1


@pytest.mark.parametrize("fields", [{"ahead": 0, "threads": 0}, {"ahead": 2, "threads": 2}])
def test_chain_restored_at_any_batch_goes_on_alike(forty, tmp_path, fields):
    other = write_corpus(tmp_path, 9, seconds=0.15, first=100, changes={104: GONE})
    small = {"b": 2, "t": 48, "bins": 2, "max_reject_share": 0.5, "augment": Augment(mask=1.0)}
    run = run_over(forty, other, **small | fields)
    batches = experimental.LimitIterDataset(train_batches(run, BYTES), 5)
    experimental.assert_equal_output_after_checkpoint(batches)


def test_chain_stopped_at_a_random_step_goes_on_as_if_not(forty):
    run = run_over(forty, ahead=2, t=48)
    straight = iter(train_batches(run, BYTES, lanes=[2, 3]))
    step = int(np.random.default_rng().integers(1, 12))
    for _ in range(step):
        next(straight)
    resumed = iter(train_batches(run, BYTES, lanes=[2, 3]))
    resumed.set_state(straight.get_state())
    for _ in range(4):
        for left, right in zip(next(resumed), next(straight), strict=True):
            assert np.array_equal(left, right), f"stopped at step {step}"
        assert stream_counts(resumed) == stream_counts(straight)


def test_chain_over_prepared_flac_equals_the_one_over_its_manifest(forty, batch, tmp_path):
    prepare(forty, tmp_path / "out", per_shard=16)
    flac = next(iter(train_batches(run_over(tmp_path / "out"), BYTES)))
    assert all(np.array_equal(*arrays) for arrays in zip(batch, flac, strict=True))


def test_chain_over_ready_mel_differs_by_its_rounding_alone(forty, batch, tmp_path):
    prepare(forty, tmp_path / "out", mel=dataclasses.replace(MEL, r=1))
    ready = next(iter(train_batches(run_over(tmp_path / "out"), BYTES)))
    assert np.array_equal(batch.patches, ready.patches)  # both rounded once, to bfloat16
    assert np.array_equal(batch.tokens, ready.tokens)


def test_chain_over_mel_made_otherwise_is_refused(forty, tmp_path):
    prepare(forty, tmp_path / "out", mel=dataclasses.replace(MEL, normalize="none"))
    with pytest.raises(Mistake, match=r"mel.normalize=utterance: .*out holds mel made with none"):
        train_batches(run_over(tmp_path / "out"), BYTES)


def test_chain_without_a_corpus_says_so(forty):
    run = run_over(forty)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, sources=()))
    with pytest.raises(Mistake, match=r"data.sources=\(\): needs one corpus at least"):
        train_batches(run, BYTES)


def test_chain_with_a_negative_seed_is_refused(forty):
    with pytest.raises(Mistake, match="seed=-1: must be 0 or more"):
        train_batches(run_over(forty, seed=-1), BYTES)


def test_chain_over_changed_data_is_refused(tmp_path):
    folder = write_corpus(tmp_path, 3)
    run = run_over(folder, b=1, ahead=0)
    (source,) = run.data.sources
    source = dataclasses.replace(source, digest=split_digest(folder, "train"))
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, sources=(source,)))
    next(iter(train_batches(run, BYTES)))
    write_corpus(tmp_path, 4)
    with pytest.raises(Mistake, match=rf"data.sources.digest={source.digest}: .* has "):
        train_batches(run, BYTES)


def test_eval_examples_come_once_in_order_and_bad_ones_as_rejects(tmp_path):
    folder = write_corpus(tmp_path, 6, split="test", changes={2: GONE, 4: {"text": ""}})
    corpus = open_corpus(folder, "test")
    run = run_over(folder, t=4, longest=0.1)
    found = list(eval_examples(corpus, run, BYTES))
    assert [trial.id for trial in found] == [f"id{number}" for number in range(6)]
    assert [isinstance(trial, Reject) for trial in found] == [n == 2 for n in range(6)]
    assert found[4].reference == ""
    assert len(found[0].columns["tokens"]) == math.ceil(found[0].columns["frames"].sum() / 8) + 1
    longest_first = list(eval_examples(corpus, run, BYTES, order=indices_longest_first(corpus)))
    durations = [trial.duration for trial in longest_first if not isinstance(trial, Reject)]
    assert len(durations) == 5
    assert durations == sorted(durations, reverse=True)


def test_process_that_leaves_an_iterator_open_ends_in_silence(forty):
    script = f"""
from tests.support.corpora import run_over
from data_pipelines.loader import pipeline
from data_pipelines.text.load_tokenizer import load_tokenizer
iterator = iter(pipeline.train_batches(run_over({str(forty)!r}), load_tokenizer("bytes")))
next(iterator)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ids_that_a_corpus_holds_are_used_if_they_are_the_tokenizers_own(tmp_path, forty):
    prepare(forty, tmp_path / "ids", tokenizer="bytes")
    run = run_over(tmp_path / "ids", **ORDERED)
    plain = texts(run_over(forty, **ORDERED), 40)
    assert texts(run, 40) == plain

    class Mute(type(BYTES)):
        """As `bytes`, but for `encode`."""

        def encode(self, text):
            raise AssertionError(f"{text} is encoded once more")

    def encoded(corpus, tokenizer):
        return next(iter(train_batches(run_over(corpus), tokenizer)))

    assert np.array_equal(encoded(tmp_path / "ids", Mute()).tokens, encoded(forty, BYTES).tokens)
    with pytest.raises(AssertionError, match="is encoded once more"):
        encoded(forty, Mute())
    Mute.digest = lambda self: "another"
    with pytest.raises(AssertionError, match="is encoded once more"):
        encoded(tmp_path / "ids", Mute())
