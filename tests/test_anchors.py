"""CCS, NNCCS and quality anchors, from class centres and from a header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labels import anchors
from labels.anchors import (
    EmbeddedFaces,
    Header,
    centre_similarities,
    count_photos,
    identity_of,
    load_header,
    photo_of,
    quality_anchor,
)
from model.checkpoint import save_checkpoint
from model.iresnet import ArcFaceHeader

WIDTH = 6
COSINES = st.floats(-1, 1)


def some_faces(names: list[str], seed: int = 0) -> EmbeddedFaces:
    return EmbeddedFaces(np.random.default_rng(seed).normal(size=(len(names), WIDTH)).astype(np.float32), names)


def similarities_one_by_one(faces: EmbeddedFaces, gallery: EmbeddedFaces) -> np.ndarray:
    """The definition, face by face, in float64: (N, 2)."""

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.linalg.norm(vector)

    def centre(rows: list[int]) -> np.ndarray:
        return unit(np.mean([unit(gallery.embeddings[row].astype(np.float64)) for row in rows], axis=0))

    found = []
    for embedding, name in zip(faces.embeddings.astype(np.float64), faces.paths, strict=True):
        members: dict[str, list[int]] = {}
        for row, other in enumerate(gallery.paths):
            members.setdefault(identity_of(other), []).append(row)
        own = [row for row in members.pop(identity_of(name)) if photo_of(gallery.paths[row]) != photo_of(name)]
        found.append((unit(embedding) @ centre(own), max(unit(embedding) @ centre(rows) for rows in members.values())))
    return np.array(found)


def test_identities_and_photographs_from_paths() -> None:
    assert [identity_of(path) for path in ("a/1.jpg", "x/a/1.jpg", "1.jpg")] == ["a", "x/a", ""]
    assert photo_of("a/1~blur~dark.jpg") == photo_of("a/1.png") != photo_of("b/1.png")
    assert photo_of("a/~1.jpg") != photo_of("a/~2.jpg")   # nothing before the tilde: a name like any other
    assert count_photos(["a/1.jpg", "a/1~blur.jpg", "a/2.jpg", "b/1.jpg"]) == {"a": 2, "b": 1}


def test_class_centres_leave_the_image_itself_out() -> None:
    faces = some_faces([f"{identity}/{image}.jpg" for identity in "abcd" for image in range(3)])
    np.testing.assert_allclose(
        np.stack(centre_similarities(faces, faces), axis=1), similarities_one_by_one(faces, faces), atol=1e-6
    )


def test_versions_of_a_photograph_are_left_out_together() -> None:
    names = ["a/1.jpg", "a/1~blur.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg", "b/2.jpg", "b/2~dark.png"]
    faces = some_faces(names)
    np.testing.assert_allclose(
        np.stack(centre_similarities(faces, faces), axis=1), similarities_one_by_one(faces, faces), atol=1e-6
    )


def test_versions_against_the_centres_of_a_clean_gallery() -> None:
    gallery = some_faces(["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg"])
    faces = some_faces(["a/1~blur.jpg", "a/new.jpg", "b/2~dark.jpg"], seed=1)
    ccs, nnccs = centre_similarities(faces, gallery)
    np.testing.assert_allclose(np.stack([ccs, nnccs], axis=1), similarities_one_by_one(faces, gallery), atol=1e-6)
    moved = EmbeddedFaces(np.concatenate([-gallery.embeddings[:1], gallery.embeddings[1:]]), gallery.paths)
    assert centre_similarities(faces, moved)[0][0] == ccs[0]   # a/1 has no part in the own centre of its version


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = some_faces([f"{identity}/{image}.jpg" for identity in range(7) for image in range(3)])
    whole = centre_similarities(faces, faces)
    monkeypatch.setattr(anchors, "BLOCK_ELEMENTS", 14)   # two faces a block
    np.testing.assert_allclose(centre_similarities(faces, faces), whole, atol=1e-7)


def test_galleries_count_together() -> None:
    names = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "a/1~blur.jpg", "a/2.jpg", "c/1.jpg", "b/2~dark.png"]
    everyone = some_faces(names)
    first = np.arange(len(names)) < 3
    faces = everyone.where([name[0] != "c" for name in names])
    together = centre_similarities(faces, everyone)
    apart = centre_similarities(faces, everyone.where(first), everyone.where(~first))
    np.testing.assert_allclose(apart, together, atol=1e-6)


def test_a_selection_shares_the_embeddings_of_all() -> None:
    stored = np.arange(12, dtype=np.float32).reshape(4, 3)
    chosen = EmbeddedFaces(stored, ["a/1", "a/2", "b/1", "b/2"]).where([True, False, True, True]).where([0, 1, 1])
    assert chosen.paths == ["b/1", "b/2"]
    assert len(chosen) == 2
    stored[3] = -1   # a copy would not see it
    np.testing.assert_array_equal(chosen.embeddings, [[6, 7, 8], [-1, -1, -1]])
    np.testing.assert_array_equal(chosen.block(slice(1, 2)), [[-1, -1, -1]])


@pytest.mark.parametrize("source", ["centres", "header"])
def test_few_embeddings_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """However few the classes are."""
    faces = some_faces([f"{identity}/{image}.jpg" for identity in "ab" for image in range(20)])
    taken = []
    block = EmbeddedFaces.block
    monkeypatch.setattr(anchors, "BLOCK_ROWS", 7)
    monkeypatch.setattr(EmbeddedFaces, "block", lambda *args: taken.append(block(*args)) or taken[-1])
    if source == "centres":
        centre_similarities(faces, faces)
    else:
        Header(ArcFaceHeader(WIDTH, 2), {"a": 0, "b": 1}).similarities(faces)
    assert max(map(len, taken)) == 7


def test_one_identity_alone_has_no_anchors() -> None:
    faces = some_faces(["a/1.jpg", "a/2.jpg", "a/3.jpg"])
    with pytest.raises(ValueError, match="two identities or more, and only a has a face"):
        centre_similarities(faces, faces)


@pytest.mark.parametrize("kind", ["ratio", "shifted"])
@given(ccs=COSINES, nnccs=COSINES)
@settings(deadline=None)
def test_anchors_are_finite_and_grow_with_the_similarity_to_the_own_class(kind: str, ccs: float, nnccs: float) -> None:
    low, high = quality_anchor(np.array([ccs, min(1, ccs + 0.1)]), np.array([nnccs, nnccs]), kind)
    assert np.isfinite([low, high]).all()
    assert low <= high


def test_anchor_formulas() -> None:
    ccs, nnccs = np.array([0.6, 0.6, 0.6]), np.array([0.3, 0.0, -0.5])
    np.testing.assert_allclose(quality_anchor(ccs, nnccs, "ratio"), [2, 600, 600])
    np.testing.assert_allclose(quality_anchor(ccs, nnccs, "shifted"), [0.6 / 1.3, 0.6, 1.2], rtol=1e-8)


def test_header_gives_the_published_anchors(golden: Path, tmp_path: Path) -> None:
    numbers = np.load(golden / "losses.npz")
    kernel, labels = torch.from_numpy(numbers["cr_kernel"]), numbers["cr_labels"]
    save_checkpoint(tmp_path / "1header.safetensors", {"kernel": kernel}, {})
    faces = EmbeddedFaces(numbers["cr_embeddings"], [f"{label}/{row}.jpg" for row, label in enumerate(labels)])
    header = load_header(tmp_path / "1header.safetensors", len(kernel), map(str, labels))
    ccs, nnccs = header.similarities(faces)
    np.testing.assert_allclose(ccs, numbers["cr_ccs"][:, 0], atol=1e-6)
    np.testing.assert_allclose(nnccs, numbers["cr_nnccs"][:, 0], atol=1e-6)
    np.testing.assert_allclose(quality_anchor(ccs, nnccs, "ratio"), numbers["cr_anchor"][:, 0], rtol=1e-5)


def test_header_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = some_faces([f"{identity}/{image}.jpg" for identity in "abc" for image in range(3)])
    header = Header(ArcFaceHeader(WIDTH, 3), {"a": 2, "b": 0, "c": 1})
    whole = header.similarities(faces)
    monkeypatch.setattr(anchors, "BLOCK_ELEMENTS", 6)
    np.testing.assert_allclose(header.similarities(faces), whole, atol=1e-6)


def test_the_centres_of_a_header_are_normalised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in each block: that was most of the work of large sets."""
    faces = some_faces([f"{identity}/{image}.jpg" for identity in "abc" for image in range(5)])
    header = Header(ArcFaceHeader(WIDTH, 3), {"a": 2, "b": 0, "c": 1})
    normalised = []
    normalize = torch.nn.functional.normalize
    monkeypatch.setattr(anchors, "BLOCK_ELEMENTS", 6)
    monkeypatch.setattr(
        torch.nn.functional, "normalize", lambda x, **options: normalised.append(x.shape) or normalize(x, **options)
    )
    header.similarities(faces)
    assert normalised.count(header.network.kernel.shape) == 1


def test_the_header_is_on_the_device_of_the_call(tmp_path: Path) -> None:
    header = load_header(saved_header(tmp_path / "32header.safetensors"), WIDTH, ["1"], device="meta")
    assert header.network.kernel.device.type == "meta"


def saved_header(path: Path, classes: int = 12) -> Path:
    save_checkpoint(path, {"kernel": torch.randn(WIDTH, classes)}, {})
    return path


def test_classes_of_a_header_come_from_its_list_or_from_integer_names(tmp_path: Path) -> None:
    path = saved_header(tmp_path / "32header.safetensors")
    assert load_header(path, WIDTH, ["0", "10", "2"]).classes == {"0": 0, "10": 10, "2": 2}   # not their ranks
    names = [f"person {index}" for index in range(12)][::-1]
    (tmp_path / "32classes.txt").write_text("\n".join(names) + "\n")
    assert load_header(path, WIDTH, ["person 0", "person 11"]).classes["person 11"] == 0


def test_headers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = saved_header(tmp_path / "32header.safetensors")
    with pytest.raises(ValueError, match=r"^ann, bob: which of the 12 classes"):
        load_header(path, WIDTH, ["ann", "1", "bob"])
    with pytest.raises(ValueError, match=r"^12: which of the 12 classes"):
        load_header(path, WIDTH, ["11", "12"])
    with pytest.raises(ValueError, match="no header"):
        load_header(path, WIDTH + 1, ["1"])
    (tmp_path / "32classes.txt").write_text("ann\nbob\n")
    with pytest.raises(ValueError, match="names 2 classes"):
        load_header(path, WIDTH, ["ann"])
    (tmp_path / "32classes.txt").write_text("ann\n" * 2 + "".join(f"{index}\n" for index in range(10)))
    with pytest.raises(ValueError, match="names a class twice: ann"):
        load_header(path, WIDTH, ["ann"])
    (tmp_path / "32classes.txt").write_text("".join(f"person {index}\n" for index in range(12)))
    with pytest.raises(ValueError, match="knows none of the identities, such as 1, 2"):   # no indices beside a list
        load_header(path, WIDTH, ["1", "2"])
