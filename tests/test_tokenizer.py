"""The tokenizer and the 360 sentences, against the published tokens and against open_clip's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.prompts import AXES, FACTORS, JOINT_SHAPE, joint_prompts, prompts_hash
from model.tokenizer import tokenize

TRICKY = [
    "",
    "a photo of a face",
    "  Two   SPACES\tand a tab\n",
    "it's they're we've I'm she'll he'd",
    "12345 and 3.14, 50% off!!! :-) #face",
    "naïve café Ångström façade",
    "schÃ¶n",  # mojibake, which ftfy repairs
    "&lt;b&gt; &amp;amp; &quot;",
    "顔の品質 👩🏽‍🦰 العربية",
    "<|startoftext|>inside<|endoftext|>",
    "supercalifragilisticexpialidocious",
    "\u00a0non\u2009breaking\u3000spaces\x1f",
]


def test_prompts_are_the_published_ones(golden: Path) -> None:
    assert joint_prompts() == json.loads((golden / "prompts.json").read_text())


def test_prompts_follow_the_axes() -> None:
    assert tuple(map(len, AXES.values())) == JOINT_SHAPE
    assert (*FACTORS, "quality") == tuple(AXES)
    index = np.ravel_multi_index((2, 0, 1, 1, 0, 3), JOINT_SHAPE)
    assert joint_prompts()[index] == (
        "a photo of a clear, obstructed, and slight angle face with typical expression under extreme lighting, "
        "which is of good quality"
    )


def test_prompts_hash_tells_sentences_apart() -> None:
    assert prompts_hash() == prompts_hash(joint_prompts())
    assert prompts_hash(joint_prompts()[::-1]) != prompts_hash()
    assert prompts_hash([]) != prompts_hash()


def test_tokens_are_the_published_ones(golden: Path) -> None:
    expected = np.load(golden / "prompts.npz")["tokens"]
    tokens = tokenize(joint_prompts())
    assert tokens.shape == (360, 77)
    np.testing.assert_array_equal(tokens[:, : expected.shape[1]], expected)
    assert not tokens[:, expected.shape[1] :].any()


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_texts_as_open_clip(text: str) -> None:
    assert tokenize(text).tolist() == _open_clip_tokens(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_as_open_clip(text: str) -> None:
    assert tokenize(text, 256).tolist() == _open_clip_tokens(text, 256)


def test_too_long_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="is 102 tokens long, at most 77 fit"):
        tokenize("face " * 100)
    assert tokenize("face " * 75)[0, -1] == 49407


def test_many_texts_are_rows() -> None:
    both = tokenize(["a face", "a clear face"])
    assert both.tolist() == [tokenize("a face")[0].tolist(), tokenize("a clear face")[0].tolist()]


def _open_clip_tokens(text: str, context_length: int = 77) -> list[list[int]]:
    return _open_clip_tokenizer()(text, context_length).tolist()


@cache
def _open_clip_tokenizer() -> Callable[[str, int], Tensor]:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
