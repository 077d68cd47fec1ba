"""Mixtures of corpora, drawn to an end, changed at a resume, thinned by hours, and damaged."""

import asyncio
from collections import Counter
import dataclasses
import json

from grain import experimental
import numpy as np
import pytest

from data_pipelines.loader.pipeline import train_batches
from data_pipelines.loader.reject_counts import stream_counts
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.config.data import Augment
from melllm_jax.errors import Fault, Mistake
from tests.support.corpora import heard_once, run_over, spelled, write_corpus

once = pytest.fixture(scope="module", autouse=True)(heard_once)
BYTES = load_tokenizer("bytes")
A, B, C = range(40), range(100, 120), range(200, 230)
# Rows of about three examples, packs of two rows: lanes are soon apart.
SMALL = {"lanes": 2, "b": 2, "bins": 2, "t": 64, "max_reject_share": 0.5}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Folders of utterances whose texts are the numbers of A, B and C."""
    root = tmp_path_factory.mktemp("corpora")
    return [
        write_corpus(root / str(numbers[0]), len(numbers), first=numbers[0], seconds=0.15)
        for numbers in (A, B, C)
    ]


def started(run, lanes=None):
    return iter(train_batches(run, BYTES, lanes=lanes))


def texts(batch):
    """Those of the examples in a batch."""
    found = []
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segments[row].max() + 1):
            found.append(BYTES.decode(batch.tokens[row][batch.segments[row] == segment].tolist()))
    return found


def rest(iterator, most=10_000):
    """The texts of all batches to come, or of so many."""
    found = []
    for _, batch in zip(range(most), iterator, strict=False):
        found += texts(batch)
    return found


def of(numbers, found):
    """How often each of the numbers is among the texts."""
    names = {spelled(number): number for number in numbers}
    return Counter(names[text] for text in found if text in names)


def saved(iterator):
    return json.loads(json.dumps(iterator.get_state()))


def test_shares_follow_weight_and_hours_by_the_temperature(corpora):
    def shares(**fields):
        run = run_over(*corpora[:2], weights=[1.0, 3.0], **SMALL | fields)
        parts = saved(started(run))["phases"][0]["parts"]
        return parts[1]["share"] / parts[0]["share"]

    lines = [(folder / "train.jsonl").read_text().splitlines() for folder in corpora]
    seconds = [sum(json.loads(line)["duration"] for line in part) for part in lines]
    ratio = seconds[1] / seconds[0]
    assert ratio < 0.7
    assert shares() == pytest.approx(3)
    assert shares(temperature=1.0) == pytest.approx(3 * ratio, rel=1e-3)
    assert shares(temperature=2.0) == pytest.approx(3 * ratio**0.5, rel=1e-3)


def test_stream_of_some_epochs_ends_when_each_source_was_drawn_so_often(corpora):
    # Rows of one example each: none is left over in a batch that is not full.
    run = run_over(*corpora[:2], **SMALL | {"t": 32, "lanes": 1, "b": 1}, epochs=3)
    iterator = started(run)
    found = rest(iterator)
    assert set(of(A, found).values()) == set(of(B, found).values()) == {3}
    assert len(found) == 3 * 60
    assert set(of(B, found[:110])) == set(B)  # in turn with the others, from the first
    assert not of(B, found[130:])  # the smaller one drops out
    with pytest.raises(StopIteration):
        next(iterator)
    assert stream_counts(iterator)["sources"][0] == {"seen": 120, "epoch": 3.0}


@pytest.mark.parametrize("step", [1, 6])
def test_changed_weights_lose_and_double_nothing(corpora, step):
    old = run_over(*corpora[:2], weights=[4.0, 1.0], epochs=2, **SMALL)
    new = run_over(*corpora[:2], weights=[1.0, 1.0], epochs=2, **SMALL)
    first = started(old)
    found = rest(first, step)
    second = started(new)
    second.set_state(saved(first))
    change = second.change
    assert change.now == {str(folder): 0.5 for folder in corpora[:2]}
    ahead = [texts(next(second)) for _ in range(3)]
    third = started(new)
    third.set_state(saved(second))
    assert third.change is None
    found += sum(ahead, []) + rest(third)
    counts = of(A, found), of(B, found)
    assert all(max(count.values()) == 2 for count in counts)
    assert sum(sum(count.values()) for count in counts) >= 2 * 60 - 8  # but for the last batch


def test_source_added_and_one_taken_out_at_a_resume(corpora):
    a, b, c = corpora
    first = started(run_over(a, b, **SMALL))
    before = rest(first, 4)
    run = run_over(c, a, **SMALL)
    second = started(run)
    second.set_state(saved(first))
    assert second.carried == [-1, 0]
    assert set(second.change.now) == {str(a), str(c)}
    after = rest(second, 12)
    drawn = of(A, before) + of(A, after)
    assert max(drawn.values()) - min(drawn[number] for number in A) <= 1
    # Of what was taken out comes what lanes behind were to draw, and what lay in packs.
    assert not of(B, after[len(after) // 2 :])
    assert of(C, after[len(after) // 2 :])
    drawn = of(B, before) + of(B, after)
    assert max(drawn.values()) - min(drawn[number] for number in B) <= 1
    counts = stream_counts(second)
    assert [source["seen"] for source in counts["sources"]] == [
        sum(of(C, after).values()),
        sum(of(A, before + after).values()),
    ]


def test_stream_that_ended_goes_on_with_more_epochs_and_loses_nothing(corpora):
    once, twice = (run_over(*corpora[:2], epochs=epochs, **SMALL) for epochs in (1, 2))
    first = started(once)
    found = rest(first)
    assert 50 <= len(found) <= 60  # rows that do not fill a batch stay over
    second = started(twice)
    second.set_state(saved(first))
    found += rest(second)
    counts = of(A, found) + of(B, found)
    assert max(counts.values()) == 2
    assert sum(counts.values()) > 112  # but for the last rows


def test_mixture_changed_is_the_same_for_any_number_of_hosts(corpora, tmp_path):
    class There:
        async def await_creation(self):
            return tmp_path

    async def save(iterator):
        await (await iterator.save(There()))

    async def load_from(iterator):
        await (await iterator.load(tmp_path))

    for lane in (0, 1):
        host = started(run_over(*corpora[:2], **SMALL), [lane])
        rest(host, 5)
        asyncio.run(save(host))
    new = run_over(*corpora, weights=[1.0, 2.0, 3.0], **SMALL)
    one, *two = started(new), started(new, [0]), started(new, [1])
    for iterator in (one, *two):
        asyncio.run(load_from(iterator))
    for _ in range(9):
        whole, halves = next(one), [next(host) for host in two]
        assert all(
            np.array_equal(x, np.concatenate(parts))
            for x, parts in zip(whole, zip(*halves, strict=True), strict=True)
        )
    half = saved(two[0])
    with pytest.raises(Fault, match="needs the places of all 2 lanes"):
        started(run_over(*corpora[:2], **SMALL)).set_state(half)


def test_source_changed_in_its_place_is_refused(corpora, tmp_path):
    folder = write_corpus(tmp_path, 5, seconds=0.15)
    state = saved(started(run_over(folder, corpora[0], **SMALL)))
    write_corpus(tmp_path, 6, seconds=0.15)
    with pytest.raises(Mistake, match="its content, or hours, is not what the run has drawn"):
        started(run_over(folder, corpora[0], **SMALL)).set_state(state)


def test_source_gone_from_disk_while_it_is_needed_says_so(corpora, tmp_path):
    folder = write_corpus(tmp_path / "gone", 30, seconds=0.15, first=300)
    first = started(run_over(folder, corpora[0], **SMALL))
    rest(first, 3)
    state = saved(first)
    (folder / "train.jsonl").unlink()
    with pytest.raises(Mistake, match="gone is no source any more, but examples drawn before"):
        started(run_over(corpora[0], **SMALL)).set_state(state)


def test_full_chain_restored_at_any_batch_goes_on_alike(corpora, tmp_path):
    """Augmentation, a subset, two corpora, an end, packing and lanes."""
    gone = write_corpus(
        tmp_path, 20, seconds=0.15, first=300, changes={304: {"audio_filepath": "none.flac"}}
    )
    prepare(corpora[0], tmp_path / "out", per_shard=7)
    run = run_over(tmp_path / "out", gone, weights=[2.0, 1.0], epochs=1, **SMALL)
    augment = Augment(mask=1.0, warp=1.0, warp_width=2, volume=0.5, speed=0.5, shift=3)
    (first, second) = run.data.sources
    data = dataclasses.replace(
        run.data,
        augment=augment,
        sources=(dataclasses.replace(first, hours=30 * 0.15 / 3600), second),
        temperature=2.0,
    )
    batches = train_batches(dataclasses.replace(run, data=data), BYTES)
    count = len(list(batches))
    assert count > 5
    experimental.assert_equal_output_after_checkpoint(batches)


@pytest.fixture
def damaged(corpora, tmp_path):
    """Shards of A, five utterances each; a bit of the third is changed, the fifth is missing."""
    prepare(corpora[0], tmp_path / "out", per_shard=5)
    path = tmp_path / "out/train-00002.array_record"
    content = bytearray(path.read_bytes())
    content[content.index(b"fLaC") + 100] ^= 1
    path.write_bytes(content)
    (tmp_path / "out/train-00004.array_record").unlink()
    return tmp_path / "out"


def test_damaged_shards_stop_the_run_with_their_name(damaged):
    with pytest.raises(Fault, match=r"train-00004.array_record: is missing"):
        train_batches(run_over(damaged, **SMALL), BYTES)


def test_damaged_shards_are_skipped_named_once_and_counted(damaged):
    told = []
    run = run_over(damaged, corrupt="skip", epochs=3, **SMALL | {"t": 32, "b": 1, "lanes": 1})
    iterator = iter(train_batches(run, BYTES, log=told.append))
    found = rest(iterator)
    lost = set(range(20, 25))
    counts = of(A, found)
    assert lost.isdisjoint(counts)
    assert len(counts) == 34
    assert set(counts.values()) == {3}
    assert (
        stream_counts(iterator)["bad"]["damaged shard"] >= 3 * 6 - 6
    )  # but for those past the last
    assert len(told) == 2
    assert sum("train-00004.array_record: is missing" in line for line in told) == 1
    assert sum("train-00002.array_record: record" in line for line in told) == 1


def test_damaged_shards_beyond_the_share_of_bad_data_stop_the_run(damaged):
    run = run_over(damaged, corrupt="skip", **SMALL | {"max_reject_share": 0.1})
    with pytest.raises(Mistake, match=r"data.max_reject_share=0.1: .* damaged shard"):
        rest(started(run))
