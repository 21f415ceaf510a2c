"""The recipe of the default model: mixed anchors, and damage of two families."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import recipe

from config_train import parse_arguments
from faces.degradations import KINDS
from labels.anchors import EmbeddedFaces, centre_similarities, quality_anchor
from labels.label_table import Label, read_labels, write_labels
from recipes.default_model import anchors
from recipes.default_model.anchors import mixed_anchors
from recipes.default_model.recipe import recipe as recipe_of
from recipes.default_model.reports import unseen


def embeddings(rng: np.random.Generator, spread: float, versions: bool) -> EmbeddedFaces:
    """Ten people of four photographs around their centres, the first of each person far from it; and bad versions."""
    centres = rng.normal(size=(10, 16))
    rows, paths = [], []
    for person, centre in enumerate(centres):
        for photo in range(4):
            rows.append(centre + rng.normal(scale=4 * spread if photo == 0 else spread, size=16))
            paths.append(f"p{person}/{photo}.jpg")
            if versions:
                rows.append(0.1 * rng.normal(size=16))
                paths.append(f"p{person}/{photo}~1.png")
    return EmbeddedFaces(np.array(rows, np.float32), paths)


def test_mixed_anchors_rank_faces_by_their_distance_and_by_length() -> None:
    models = [embeddings(np.random.default_rng(seed), 0.3, versions=True) for seed in (0, 1)]
    quality = mixed_anchors(models, 0.0)
    far = np.array(["/0.jpg" in path for path in models[0].paths])
    version = np.array(["~" in path for path in models[0].paths])
    assert ((quality > 0) & (quality < 1)).all()
    assert quality[far].mean() < quality[~far & ~version].mean() - 0.2
    assert quality[version].mean() < 0.1
    lengths = np.mean([np.linalg.norm(model.embeddings, axis=1) for model in models], axis=0)
    assert np.corrcoef(mixed_anchors(models, 1.0), lengths)[0, 1] > 0.8


def test_damaged_versions_do_not_move_the_anchors_of_originals() -> None:
    """Standard deviations and centres are those of the originals."""
    faces = embeddings(np.random.default_rng(0), 0.3, versions=True)
    original = np.array(["~" not in path for path in faces.paths])
    expected = mixed_anchors([faces.where(original)], 0.5)
    np.testing.assert_allclose(mixed_anchors([faces], 0.5)[original], expected, rtol=1e-6)


def test_a_face_without_an_identity_has_the_anchor_of_its_length() -> None:
    """Its CCS is what the regression on the length says, and it moves no other anchor."""
    faces = embeddings(np.random.default_rng(0), 0.3, versions=False)
    known = mixed_anchors([faces], 0.3)
    lengths = np.linalg.norm(faces.embeddings, axis=1)
    direction = np.random.default_rng(1).normal(size=16)
    sizes = np.quantile(lengths, [0.1, 0.5, 0.9]) / np.linalg.norm(direction)
    nameless = np.array([direction * size for size in sizes])
    both = EmbeddedFaces(
        np.concatenate([faces.embeddings, nameless]).astype(np.float32), [*faces.paths, *(f"{i}.jpg" for i in range(3))]
    )
    found = mixed_anchors([both], 0.3)
    np.testing.assert_allclose(found[:40], known, rtol=1e-6)
    trend = np.polyfit(lengths, known, 1)[0]
    assert np.all(np.sign(np.diff(found[40:])) == np.sign(trend))


def test_darkness_lowers_the_anchor(tmp_path: Path) -> None:
    rows = ["path\tkinds", "a~1.png\tdark:0.50", "b~1.png\tmask:0.10 dark:1.00", "c~1.png\tjpeg:1.0", ""]
    (tmp_path / "damage.tsv").write_text("\n".join(rows))
    kinds = anchors.read_kinds(tmp_path / "damage.tsv")
    found = anchors.visible_shares(["a~1.png", "b~1.png", "c~1.png", "a.jpg"], kinds)
    assert found.tolist() == pytest.approx([1 - anchors.DARKNESS / 2, 1 - anchors.DARKNESS, 1, 1])


def test_a_version_without_damage_has_the_anchor_of_its_original() -> None:
    names = ["ann/1~1.png", "ann/1~2.png", "ann/1.jpg", "ann/2.jpg", "bob/1~1.png", "bob/1.jpg"]
    kinds = {"ann/1~1.png": "jpeg:0.50", "ann/1~2.png": "", "bob/1~1.png": ""}
    found = anchors.of_originals(names, np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), kinds)
    assert found.tolist() == [0.1, 0.3, 0.3, 0.4, 0.6, 0.6]


def test_an_ordinary_face_is_good_and_most_of_the_range_lies_below() -> None:
    quality = mixed_anchors([embeddings(np.random.default_rng(0), 0.3, versions=False)], 0.3)
    assert 0.65 < np.median(quality) < 0.8
    assert np.median(quality) - quality.min() > quality.max() - np.median(quality)


def test_the_makefile_trains_what_the_recipe_says() -> None:
    """But for the text tower, which need not ship."""
    text = (Path(__file__).parents[1] / "Makefile").read_text().replace("\\\n", " ")
    flags = re.findall(r"^TRAIN := (.*)$", text, flags=re.MULTILINE)[0].replace("$(RECIPE)", "runs/default").split()
    made = parse_arguments([*flags, "--clip-model", "start.safetensors", "--device", "cpu"])
    assert replace(made, save_text_tower=True) == recipe_of(Path("runs/default/train.tsv"), Path("start.safetensors"))


def test_anchors_replace_the_qualities_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = embeddings(np.random.default_rng(0), 0.3, versions=False)
    table = tmp_path / "labels.tsv"
    write_labels(table, [Label(f"faces/{p}", 9.0, 2, 2, 1, 1, 1, p.split("/")[0], "ok") for p in faces.paths])
    order = np.random.default_rng(1).permutation(len(faces.paths))
    names = np.array([f"/elsewhere/faces/{faces.paths[row]}" for row in order])
    np.savez(tmp_path / "fr.npz", names=names, embeddings=faces.embeddings[order])
    assert anchors.main([str(table), str(tmp_path / "fr.npz"), "--output", str(tmp_path / "out.tsv")]) == 0
    found = [label.quality for label in read_labels(tmp_path / "out.tsv")]
    np.testing.assert_allclose(np.array(found, float), mixed_anchors([faces], 0.3), rtol=1e-6)
    assert "40 rows, anchors from 1 FR models" in capsys.readouterr().out

    for kind in ("ratio", "shifted"):
        call = [str(table), str(tmp_path / "fr.npz"), "--output", str(tmp_path / "out.tsv"), "--anchor", kind]
        assert anchors.main(call) == 0
        found = [label.quality for label in read_labels(tmp_path / "out.tsv")]
        expected = quality_anchor(*centre_similarities(faces, faces), kind)
        np.testing.assert_allclose(np.array(found, float), expected, rtol=1e-4)
    assert anchors.main([call[0], call[1], *call[1:]]) == 2
    assert "is of one FR model; 2 files" in capsys.readouterr().err

    write_labels(table, [Label("faces/a/b.jpg", 9.0, 2, 2, 1, 1, 1)])
    assert anchors.main([str(table), str(tmp_path / "fr.npz"), "--output", str(tmp_path / "out.tsv")]) == 2
    assert "has no identity" in capsys.readouterr().err


@pytest.mark.parametrize("kind", unseen.KINDS)
def test_unseen_damage_grows_with_its_strength(kind: str) -> None:
    """And is no kind that training has seen."""
    assert kind not in KINDS
    image = recipe.mirror_image(3, 112)
    changes = []
    for strength in (0.0, 0.5, 1.0):
        damaged = [unseen.KINDS[kind](image.copy(), strength, np.random.default_rng(seed)) for seed in range(8)]
        assert all(face.shape == image.shape and face.dtype == np.uint8 for face in damaged)
        changes.append(np.mean([np.abs(face.astype(float) - image).mean() for face in damaged]))
    assert 0 < changes[0] < changes[1] < changes[2]


def test_every_second_face_is_damaged_and_always_in_the_same_way(tmp_path: Path) -> None:
    source = tmp_path / "Somebody" / "1.png"
    source.parent.mkdir()
    unseen.cv2.imwrite(str(source), recipe.mirror_image(3, 112))
    rows = [unseen.damage(index, source, tmp_path / "a", seed=1, every=2) for index in (0, 1)]
    assert rows[0] == ("Somebody/1.png", "", 0.0)
    assert rows[1][1] in unseen.KINDS
    assert unseen.damage(1, source, tmp_path / "b", seed=1, every=2) == rows[1]
    written = [(tmp_path / folder / "Somebody" / "1.png").read_bytes() for folder in "ab"]
    assert written[0] == written[1]
