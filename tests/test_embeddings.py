"""Reading embeddings, memory-mapped where the file allows, and the cosines of pairs."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from evaluation.embeddings import EmbeddingsError, pair_similarities, read_embeddings

ROWS = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
NAMES = [f"folder/{i}.jpg" for i in range(50)]


def test_a_stored_npz_is_mapped(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", names=np.array(NAMES), embeddings=ROWS, model_sha256=np.array("abc"))
    found = read_embeddings(tmp_path / "e.npz")
    assert isinstance(found.rows, np.memmap)
    np.testing.assert_array_equal(found.rows, ROWS)
    assert found.names == NAMES
    assert found.model_sha256 == "abc"


@pytest.mark.parametrize("rows", [ROWS.astype(np.float64), np.asfortranarray(ROWS), ROWS.astype(np.float16)])
def test_other_types_and_orders_are_mapped(tmp_path: Path, rows: np.ndarray) -> None:
    np.savez(tmp_path / "e.npz", names=np.array(NAMES), embeddings=rows)
    found = read_embeddings(tmp_path / "e.npz")
    assert isinstance(found.rows, np.memmap)
    np.testing.assert_array_equal(found.rows, rows)


def test_a_compressed_npz_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "e.npz", names=np.array(NAMES), embeddings=ROWS)
    found = read_embeddings(tmp_path / "e.npz")
    np.testing.assert_array_equal(found.rows, ROWS)
    assert found.model_sha256 is None


def test_a_folder_of_npy(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "00001.npy", ROWS[1])
    np.save(tmp_path / "sub" / "00000.npy", ROWS[:1])  # some write one row
    found = read_embeddings(tmp_path)
    assert found.names == ["00001.npy", "sub/00000.npy"]
    np.testing.assert_array_equal(found.rows, ROWS[[1, 0]])


def test_what_is_no_embeddings_file(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingsError, match="does not exist"):
        read_embeddings(tmp_path / "none.npz")
    with pytest.raises(EmbeddingsError, match=r"one \.npy file for each image"):
        read_embeddings(tmp_path)
    for arrays in (
        {"names": np.array(NAMES)},
        {"names": np.array(NAMES[1:]), "embeddings": ROWS},
        {"names": np.array(NAMES, object), "embeddings": ROWS},
    ):
        np.savez(tmp_path / "e.npz", **arrays)
        with pytest.raises(EmbeddingsError):
            read_embeddings(tmp_path / "e.npz")
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(EmbeddingsError):
        read_embeddings(tmp_path / "e.npz")
    np.save(tmp_path / "a.npy", ROWS[0])
    np.save(tmp_path / "b.npy", ROWS[0, :3])
    with pytest.raises(EmbeddingsError, match="differ in length"):
        read_embeddings(tmp_path)


def test_similarities_are_the_golden_ones(golden: Path) -> None:
    with np.load(golden / "evaluation/expected.npz") as expected, np.load(golden / "evaluation/embeddings.npz") as e:
        a, b, _ = expected["pair_index"].T
        for chunk in (1, 100, 10_000):
            found = pair_similarities(e["embeddings"], a, b, chunk)
            np.testing.assert_allclose(found, expected["similarity"], rtol=0, atol=1e-14)


def test_similarity_is_symmetric_to_the_bit() -> None:
    a, b = np.random.default_rng(1).integers(0, 50, (2, 300))
    np.testing.assert_array_equal(pair_similarities(ROWS, a, b), pair_similarities(ROWS, b, a))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_rows_without_a_direction_are_errors_when_used(value: float) -> None:
    rows = ROWS.copy()
    rows[3] = value
    with pytest.raises(EmbeddingsError, match="row 3"):
        pair_similarities(rows, np.array([1, 3]), np.array([2, 4]))
    assert pair_similarities(rows, np.array([1]), np.array([2])).shape == (1,)


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.jpg"), "a\rb.jpg"]
    np.savez(tmp_path / "e.npz", names=np.array(names), embeddings=ROWS[:2])
    assert read_embeddings(tmp_path / "e.npz").names == names


def test_a_table_is_no_embeddings_file(tmp_path: Path) -> None:
    """numpy's own message would advise to unpickle it."""
    (tmp_path / "s.csv").write_text("path,quality\na,1\n")
    with pytest.raises(EmbeddingsError, match=r"holds no embeddings .*evaluate\.py embed") as caught:
        read_embeddings(tmp_path / "s.csv")
    assert "pickle" not in str(caught.value)


def test_a_damaged_header_is_no_traceback(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (50, 7), }" + b"(" * 5000
    names = io.BytesIO()
    np.save(names, np.array(NAMES))
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("names.npy", names.getvalue())
        archive.writestr("embeddings.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(EmbeddingsError, match="holds no embeddings"):
        read_embeddings(tmp_path / "e.npz")
