"""CLIP's byte pair encoding (Radford et al., 2021): from sentences to the tokens of the text tower.

The merges are OpenAI's, stored beside this file with their licence. ftfy and regex are imported on the first call:
scoring an image never tokenises.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
MERGES = 48_894  # the file holds more; CLIP's vocabulary stops at 49,408 = 2 * 256 bytes + merges + 2
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def tokenize(texts: str | Sequence[str], context_length: int = 77) -> Tensor:
    """Sentences -> int64 (N, context_length): start token, byte pairs, end token, zeros.

    Raises ValueError when a sentence needs more than `context_length` tokens.
    """
    texts = [texts] if isinstance(texts, str) else texts
    encoder = _encoder()
    tokens = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        codes = encoder.encode(text)
        if len(codes) > context_length:
            raise ValueError(f"{text!r} is {len(codes)} tokens long, at most {context_length} fit: shorten it")
        row[: len(codes)] = torch.tensor(codes)
    return tokens


class BytePairEncoder:
    """Lower-cased words, spelled in bytes, whose most frequent neighbours are merged again and again."""

    def __init__(self) -> None:
        try:
            import ftfy
            import regex
        except ImportError as error:
            raise ImportError(f"the tokenizer needs {error.name}: pip install ftfy regex") from error
        self.repair = ftfy.fix_text
        self.words = regex.compile(WORD_PATTERN, regex.IGNORECASE)
        self.alphabet = _byte_alphabet()
        merges = [tuple(line.split()) for line in _vocabulary_lines()]
        letters = list(self.alphabet.values())
        units = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges), START, END]
        self.codes = {unit: code for code, unit in enumerate(units)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.word_codes: dict[str, list[int]] = {}  # words met before

    def encode(self, text: str) -> list[int]:
        """The token codes of a sentence, between start and end."""
        clean = " ".join(html.unescape(html.unescape(self.repair(text))).split()).lower()
        codes = [code for word in self.words.findall(clean) for code in self._encode_word(word)]
        return [self.codes[START], *codes, self.codes[END]]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self.word_codes:
            letters = [self.alphabet[byte] for byte in word.encode()]
            units = self._merge([*letters[:-1], letters[-1] + END_OF_WORD])
            self.word_codes[word] = [self.codes[unit] for unit in units]
        return self.word_codes[word]

    def _merge(self, units: list[str]) -> list[str]:
        """Join the neighbours of lowest rank, everywhere in the word, until no neighbours are in the table."""
        while len(units) > 1:
            best = min(pairwise(units), key=lambda pair: self.ranks.get(pair, MERGES))
            if best not in self.ranks:
                break
            merged: list[str] = []
            for unit in units:
                if merged and (merged[-1], unit) == best:
                    merged[-1] += unit
                else:
                    merged.append(unit)
            units = merged
        return units


@cache
def _encoder() -> BytePairEncoder:
    return BytePairEncoder()


def _vocabulary_lines() -> list[str]:
    with gzip.open(VOCABULARY_FILE, "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : MERGES + 1]  # the first line is a version


def _byte_alphabet() -> dict[int, str]:
    """A visible character for each byte, in the vocabulary's order: printable Latin-1 first, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted(set(range(256)) - set(printable))
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
