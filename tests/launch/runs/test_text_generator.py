"""What stands before a text: what its model saw there when it learnt."""

import dataclasses

import pytest

from data_pipelines.text.byte_tokenizer import ByteTokenizer
from launch.runs.text_generator import text_opening
from melllm_jax.config.model import ModelSpec
from tests.support import models


class Opened(ByteTokenizer):
    """Bytes, and a token before each text."""

    opening = (7,)


@pytest.mark.parametrize(
    ("front", "file", "due"),
    [
        ("none", "run.json", (ByteTokenizer().special("<|end|>"),)),  # it learnt from text alone
        ("linear", "run.json", (7,)),
        ("none", "model.json", (7,)),
    ],
)
def test_text_stands_behind_what_its_model_saw_there(front, file, due, tmp_path):
    (tmp_path / file).write_text("{}")
    spec = ModelSpec(dataclasses.replace(models.MODEL, front=front))
    assert text_opening(str(tmp_path), spec, Opened()) == due
