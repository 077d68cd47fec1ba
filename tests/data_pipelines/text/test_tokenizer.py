import io
import json
import pickle

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipelines.reject import Unusable
from data_pipelines.text.json_tokenizer import JsonTokenizer
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.tokenizer import unusable_text
from melllm_jax.errors import Mistake

SAYINGS = ["one two three four", "two three four one", "four one two three two one"] * 4


@pytest.fixture
def phi3(tmp_path):
    """A folder laid out as Phi-3's: byte fallback, and special tokens in a list beside."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAYINGS),
        model_writer=model,
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    names = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|end|>", "<|user|>"]
    added = {name: 290 + i for i, name in enumerate(names)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    return tmp_path


@pytest.fixture
def phi4(tmp_path):
    """A folder laid out as Phi-4's: byte-level BPE in tokenizer.json, a gap before the specials."""
    table = tokenizers.Tokenizer(models.BPE())
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    table.train_from_iterator(SAYINGS, trainer)
    table.add_special_tokens(["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"])
    (tmp_path / "tokenizer.json").write_text(table.to_str())
    return tmp_path


def one_table(model):
    """The tokenizer over a model of the tokenizers library that splits words at blanks."""
    table = tokenizers.Tokenizer(model)
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    return JsonTokenizer(table.to_str())


WITH_UNKNOWN = {"a": 0, "b": 1, "<unk>": 2}


def test_bytes_text_beyond_ascii_round_trips_as_its_utf8():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 0xC3, 0xA9]) == "aé"
    assert tokenizer.size == 261


def test_bytes_special_tokens_come_after_the_bytes_and_have_no_text():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.special("<|endoftext|>") == 256
    assert tokenizer.special("<|audio|>") == 260
    assert tokenizer.decode([256, 104, 260, 105, 300]) == "hi"


def test_bytes_broken_utf8_decodes_to_the_replacement_character():
    assert load_tokenizer("bytes").decode([104, 0xC3]) == "h\ufffd"


def test_special_unknown_name_is_a_mistake_naming_those_that_exist():
    with pytest.raises(Mistake, match=r"no special token <\|img\|>: .*<\|audio\|>.*<\|user\|>"):
        load_tokenizer("bytes").special("<|img|>")


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_encode_blank_text_is_bad_text(blank):
    with pytest.raises(Unusable, match="empty transcript") as caught:
        load_tokenizer("bytes").encode(blank)
    assert caught.value.reason == "empty transcript"


def test_encode_half_of_a_surrogate_pair_is_bad_text():
    with pytest.raises(Unusable, match=r"'\\ud83d' \(U\+D83D\)"):
        load_tokenizer("bytes").encode("a\ud83d")


def test_bad_text_sent_between_processes_keeps_reason_and_message():
    error = unusable_text("unknown characters", "'x'")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, str(copy)) == ("unknown characters", "unknown characters: 'x'")


def test_phi3_folder_special_tokens_have_the_ids_of_the_list(phi3):
    tokenizer = load_tokenizer(phi3)
    assert tokenizer.special("<|assistant|>") == 291
    assert tokenizer.special("<|user|>") == 294
    assert tokenizer.special("</s>") == 2
    assert tokenizer.size == 295


def test_phi3_folder_text_has_the_ids_of_the_model_alone(phi3):
    alone = sentencepiece.SentencePieceProcessor(model_file=str(phi3 / "tokenizer.model"))
    assert load_tokenizer(phi3).encode("two three") == alone.encode("two three")


def test_phi3_folder_decode_skips_special_tokens_and_ids_past_the_table(phi3):
    tokenizer = load_tokenizer(phi3)
    ids = tokenizer.encode("one two")
    unknown = tokenizer.special("<unk>")
    assert tokenizer.decode([1, 294, *ids, unknown, 293, 2, 310]) == "one two"


def test_phi3_folder_text_that_spells_a_special_token_stays_text(phi3):
    tokenizer = load_tokenizer(phi3)
    ids = tokenizer.encode("one<|end|>")
    assert tokenizer.special("<|end|>") not in ids
    assert tokenizer.decode(ids) == "one<|end|>"


def test_phi3_folder_characters_unseen_in_training_are_spelt_in_bytes(phi3):
    tokenizer = load_tokenizer(phi3)
    assert tokenizer.decode(tokenizer.encode("один")) == "один"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"294": {"content": "<|user|>"}}}),
        ("tokenizer.json", {"added_tokens": [{"id": 294, "content": "<|user|>"}]}),
    ],
)
def test_phi3_folder_special_tokens_listed_in_another_file_are_found(phi3, name, content):
    (phi3 / "added_tokens.json").unlink()
    (phi3 / name).write_text(json.dumps(content))
    tokenizer = load_tokenizer(phi3 / "tokenizer.model")
    assert tokenizer.special("<|user|>") == 294
    assert tokenizer.size == 295


def test_phi3_folder_two_ids_for_one_token_is_a_mistake(phi3):
    config = {"added_tokens_decoder": {"299": {"content": "<|user|>"}}}
    (phi3 / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(Mistake, match=r"<\|user\|> has two ids, 294 and 299"):
        load_tokenizer(phi3)


def test_phi3_folder_added_token_over_a_piece_is_a_mistake(phi3):
    (phi3 / "added_tokens.json").write_text(json.dumps({"<|user|>": 1}))
    with pytest.raises(Mistake, match=r"<\|user\|> has id 1, which is <s>"):
        load_tokenizer(phi3)


def test_phi4_folder_text_round_trips_exactly(phi4):
    tokenizer = load_tokenizer(phi4)
    for words in ("one two", "  один 😀", "a\n\nb", "e\u0301"):
        assert tokenizer.decode(tokenizer.encode(words)) == words


def test_phi4_folder_special_tokens_are_found_by_name_and_have_no_text(phi4):
    tokenizer = load_tokenizer(phi4)
    user, end = tokenizer.special("<|user|>"), tokenizer.special("<|end|>")
    assert tokenizer.size == tokenizer.special("<|assistant|>") + 1
    assert tokenizer.decode([user, *tokenizer.encode("two"), end, tokenizer.size]) == "two"


def test_phi4_folder_text_that_spells_a_special_token_stays_text(phi4):
    tokenizer = load_tokenizer(phi4)
    ids = tokenizer.encode("one<|end|>")
    assert tokenizer.special("<|end|>") not in ids
    assert tokenizer.decode(ids) == "one<|end|>"


@pytest.mark.parametrize(
    "model",
    [
        models.BPE(WITH_UNKNOWN, [], unk_token="<unk>"),
        models.WordLevel(WITH_UNKNOWN, unk_token="<unk>"),
        models.Unigram([("a", -1.0), ("b", -1.0), ("<unk>", 0.0)], unk_id=2),
    ],
    ids=["bpe", "wordlevel", "unigram"],
)
def test_json_character_outside_the_table_is_bad_text(model):
    tokenizer = one_table(model)
    assert tokenizer.encode("a b") == [0, 1]
    with pytest.raises(Unusable, match=r"unknown characters: 'д' \(U\+0434\)"):
        tokenizer.encode("a дb")


def test_load_json_that_would_drop_characters_is_a_mistake(tmp_path):
    one_table(models.BPE({"a": 0, "b": 1}, [])).save(tmp_path)
    with pytest.raises(Mistake, match="tokenizer.json: would drop characters"):
        load_tokenizer(tmp_path)


def test_save_each_kind_reads_back_equal_from_folder_and_file(phi3, tmp_path):
    kinds = {
        "tokenizer.bytes": load_tokenizer("bytes"),
        "tokenizer.model": load_tokenizer(phi3),
        "tokenizer.json": one_table(models.BPE(WITH_UNKNOWN, [], unk_token="<unk>")),
    }
    for name, tokenizer in kinds.items():
        folder = tmp_path / "saved" / name
        tokenizer.save(folder)
        for back in (load_tokenizer(folder), load_tokenizer(str(folder / name))):
            assert back == tokenizer
            assert back.digest() == tokenizer.digest()


def test_digest_changed_special_token_changes_it(phi3):
    before = load_tokenizer(phi3).digest()
    (phi3 / "added_tokens.json").write_text(json.dumps({"<|user|>": 290}))
    assert load_tokenizer(phi3).digest() != before


def test_tokenizer_sent_between_processes_encodes_the_same(phi3):
    for tokenizer in (
        load_tokenizer(phi3),
        one_table(models.BPE(WITH_UNKNOWN, [], unk_token="<unk>")),
    ):
        ids = tokenizer.encode("a")
        assert pickle.loads(pickle.dumps(tokenizer)).encode("a") == ids


def test_load_missing_path_is_a_mistake(tmp_path):
    with pytest.raises(Mistake, match="text.tokenizer=.*nowhere: is neither"):
        load_tokenizer(tmp_path / "nowhere")


def test_load_folder_without_tokenizer_is_a_mistake(tmp_path):
    with pytest.raises(Mistake, match="text.tokenizer=.*: is neither"):
        load_tokenizer(tmp_path)


def test_load_file_of_unknown_kind_is_a_mistake(tmp_path):
    (tmp_path / "tokenizer.txt").write_text("a b c")
    with pytest.raises(Mistake, match="must end in one of .model, .json, .bytes"):
        load_tokenizer(tmp_path / "tokenizer.txt")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer.bytes"])
def test_load_damaged_file_is_a_mistake_naming_it(tmp_path, name):
    (tmp_path / name).write_text("no tokenizer")
    with pytest.raises(Mistake, match=f"{name} cannot be read"):
        load_tokenizer(tmp_path)


def test_names_of_special_tokens_stand_for_them_in_marked_text_alone(phi3):
    """<|user|> takes the line break after it where the files say so, <|end|> does not."""
    config = {"added_tokens_decoder": {"294": {"content": "<|user|>", "rstrip": True}}}
    (phi3 / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(phi3)
    one = found.encode("one")
    line = found.pieces.encode("\n")
    assert found.encode_marked("<|user|>\none<|end|>\n") == [294, *one, 293, *line]
    assert 294 not in found.encode("<|user|>")
    own = load_tokenizer("bytes")
    assert own.encode_marked("<|user|>\nä") == [257, 10, *"ä".encode()]


def test_a_byte_order_mark_before_the_json_is_no_part_of_it(phi4):
    plain = load_tokenizer(phi4)
    file = phi4 / "tokenizer.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_tokenizer(phi4) == plain
