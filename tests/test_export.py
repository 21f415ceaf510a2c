"""export.py: the bundle gives the scores of the torch scorer, stands alone, and is only written when it is right."""

from __future__ import annotations

import ast
import csv
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
import torch
from PIL import Image
from recipe_tensors import recipe_tensors

import export
from bundle import graph, write
from bundle.int8 import Faces, quantise
from bundle.write import difference, load_scorer
from model.checkpoint import save_checkpoint
from model.clib_fiqa import ClibFiqa
from model.ediffiqa import EDifFIQA
from model.face_trunk import FaceTrunk
from model.iresnet import IResNet
from model.mobilefacenet import MobileFaceNetEmbedding
from model.regressor import QualityRegressor
from scoring import Scorer
from scoring.tables import row_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.timeout(900)  # the exporter alone takes seconds to import, and minutes on a busy machine

NARROW = {"layers": (1, 1, 1, 1), "widths": (8, 8, 8, 8), "embedding": 16}


def with_statistics(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights from a seed, and norms that are not the identity."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
            elif name.endswith("running_mean"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=rng))
    return network.eval()


def save_network(system: str, path: Path, golden: Path) -> Path:
    """A small checkpoint of each system that is exported."""
    torch.manual_seed(0)
    if system == "clib-fiqa":  # as published: with a text tower, and without the features of the sentences
        torch.save(recipe_tensors(golden / "clip_tiny_keys.json"), path)
    elif system == "cr-fiqa":
        torch.save(with_statistics(IResNet(**NARROW, quality_head=True)).state_dict(), path)
    elif system == "ediffiqa":
        torch.save(with_statistics(EDifFIQA(MobileFaceNetEmbedding(), 512, 8)).state_dict(), path)
    else:
        torch.save(with_statistics(QualityRegressor(FaceTrunk(), 128)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of several sizes, modes and orientations, and two that cannot be read."""
    folder = tmp_path_factory.mktemp("crops")
    for seed, size in enumerate((112, 112, 224, 96)):
        Image.fromarray(recipe.mirror_image(seed)).resize((size, size)).save(folder / f"{seed}, {size}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(recipe.mirror_image(4)).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(recipe.mirror_image(5)).convert("L").save(folder / "grey.png")
    Image.fromarray(recipe.mirror_image(6)[:90]).save(folder / "not square.png")
    (folder / "broken.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:300])
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module", params=["clib-fiqa", "cr-fiqa", "ediffiqa", "diffiqa-r", "shipped"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, golden: Path) -> tuple[str, Path]:
    """The weights of a system, and their bundle in fp32."""
    folder = tmp_path_factory.mktemp("bundle")
    shipped = request.param == "shipped"
    weights = "clib-fiqa" if shipped else str(save_network(request.param, folder / "weights.pth", golden))
    assert export.main(["--weights", weights, "--output", str(folder / "out")]) == 0
    return weights, folder / "out"


def test_rows_are_those_of_the_torch_scorer(bundle: tuple[str, Path], pictures: Path) -> None:
    weights, folder = bundle
    paths = sorted(map(str, pictures.iterdir()))
    expected = [row_of(score) for score in Scorer(weights=weights, device="cpu", align="no").score(paths)]
    found = load_scorer(folder).score(paths)
    assert Counter(row["status"] for row in found) == {"ok": 7, "truncated": 1, "not_an_image": 1}
    for ours, theirs in zip(found, expected, strict=True):
        assert_rows_equal(ours, theirs)


def assert_rows_equal(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Words are equal, and numbers up to a tolerance; of percentiles, which are steep, up to 0.5."""
    assert found.keys() <= expected.keys()
    for key, value in found.items():
        if key == "percentile" and value is not None:
            assert value == pytest.approx(expected[key], abs=0.5)
        elif key == "factors" and value is not None:
            for axis, levels in value.items():
                assert levels == pytest.approx(expected[key][axis], abs=tolerance)
        elif key in ("quality", "quality_distribution") and value is not None:
            assert value == pytest.approx(expected[key], rel=tolerance, abs=tolerance)
        else:
            assert value == expected[key], key


def test_any_batch_gives_what_torch_gives(bundle: tuple[str, Path]) -> None:
    weights, folder = bundle
    scorer, reference = load_scorer(folder), Scorer(weights=weights, device="cpu")
    for count in (1, 2, 7):
        crops = np.random.default_rng(count).integers(0, 256, (count, scorer.size, scorer.size, 3), np.uint8)
        for found, expected in zip(scorer.predict(crops).values(), graph.torch_outputs(reference, crops), strict=True):
            assert found.shape == expected.shape
            assert found.dtype == np.float32
            assert difference(found, expected) < 1e-4


def test_denormal_numbers_of_the_caller_stay(bundle: tuple[str, Path]) -> None:
    scorer = load_scorer(bundle[1])
    scorer.predict(np.zeros((1, scorer.size, scorer.size, 3), np.uint8))
    assert np.nextafter(np.float64(0), np.float64(1)) > 0


def test_the_same_in_openvino(bundle: tuple[str, Path]) -> None:
    openvino = pytest.importorskip("openvino")
    weights, folder = bundle
    reference = Scorer(weights=weights, device="cpu")
    side = graph.side_of(reference)
    hint = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", hint)
    for count in (1, 2, 7):
        crops = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
        for found, expected in zip(compiled(crops).values(), graph.torch_outputs(reference, crops), strict=True):
            assert difference(found, expected) < 1e-4
    torch.set_flush_denormal(False)  # OpenVINO leaves this thread with denormal numbers as 0; hypothesis refuses that


def test_the_graph_is_folded_and_holds_nothing_else(bundle: tuple[str, Path]) -> None:
    """No norm behind a convolution, no text tower, and no paths of the machine that made it."""
    weights, folder = bundle
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert not [norm.input[0] for norm in norms if made_by.get(norm.input[0]) == "Conv"]
    assert not [item.name for item in model.graph.initializer if "transformer" in item.name or "token" in item.name]
    assert str(Path(export.__file__).parent).encode() not in (folder / "model.onnx").read_bytes()
    settings = json.loads((folder / "settings.json").read_text())
    assert [output.name for output in model.graph.output] == settings["outputs"]
    entry = model.graph.input[0].type.tensor_type
    assert entry.elem_type == onnx.TensorProto.UINT8
    assert [axis.dim_value for axis in entry.shape.dim[1:]] == [settings["input"]["size"]] * 2 + [3]
    assert entry.shape.dim[0].dim_param
    assert str(settings["weights"]["sha256"]) == graph_sha256(weights)


def graph_sha256(weights: str) -> str:
    from model.checkpoint import sha256_of
    from model.weights import find_weights

    return sha256_of(find_weights(weights))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Path:
    """The weights of the smallest network, and beside them its bundle `out`."""
    folder = tmp_path_factory.mktemp("small")
    weights = save_network("cr-fiqa", folder / "weights.pth", golden)
    assert export.main(["--weights", str(weights), "--output", str(folder / "out")]) == 0
    return weights


def test_the_scorer_needs_numpy_pillow_and_onnxruntime_alone(small: Path) -> None:
    source = (small.parent / "out" / "scorer.py").read_text()
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {"numpy", "PIL", "onnxruntime"}
    defined = Counter(node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    assert set(defined.values()) == {1}, "two modules that are written into it define the same name"
    assert sorted(path.name for path in (small.parent / "out").iterdir()) == sorted(write.FILES)


def test_the_command_line_of_the_bundle(small: Path, pictures: Path, tmp_path: Path) -> None:
    """In a process without this repository: a row for each picture, and exit code 1 for those that cannot be read."""
    command = [sys.executable, "-I", str(small.parent / "out" / "scorer.py"), "--threads", "1"]
    table = tmp_path / "tables" / "scores.csv"
    done = subprocess.run([*command, str(pictures), "--output", str(table)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    printed = subprocess.run([*command, str(pictures)], capture_output=True, text=True)
    assert printed.stdout == table.read_text()
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    scores = Scorer(weights=small, device="cpu", align="no").score(sorted(map(str, pictures.iterdir())))
    assert [(row["path"], row["status"]) for row in rows] == [(score.path, score.status) for score in scores]
    for row, score in zip(rows, scores, strict=True):
        assert bool(row["quality"]) == (score.quality is not None)
        if score.quality is not None:
            assert float(row["quality"]) == pytest.approx(score.quality, abs=1e-4, rel=1e-4)
    lines = tmp_path / "scores.jsonl"
    first = str(sorted(pictures.glob("*112.png"))[0])
    assert subprocess.run([*command, first, "--output", str(lines)], check=False).returncode == 0
    assert json.loads(lines.read_text())["path"] == first
    for wrong in ([str(tmp_path / "none*.png"), "--output", str(tmp_path / "x.xml")], [str(tmp_path / "tables")]):
        failed = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
        assert failed.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.jsonl", "tables"]


def test_names_in_the_table_of_the_bundle_are_harmless(small: Path, pictures: Path, tmp_path: Path) -> None:
    """No formula for a spreadsheet, and no escape codes on the terminal."""
    picture = sorted(pictures.glob("*112.png"))[0].read_bytes()
    for name in ("=1+1.png", "\x1b[31mred.png"):
        (tmp_path / name).write_bytes(picture)
    command = [sys.executable, "-I", str(small.parent / "out" / "scorer.py"), "=1+1.png", "\x1b[31mred.png"]
    done = subprocess.run([*command, "--output", "a.csv"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    table = (tmp_path / "a.csv").read_text()
    assert table.splitlines()[1].startswith("'=1+1.png,ok,")
    assert "\x1b[31mred.png" in table, "the file holds the name itself"
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "\\x1b[31mred.png" in printed.stdout
    assert "\x1b" not in printed.stdout


def test_images_in_any_form(small: Path) -> None:
    scorer = load_scorer(small.parent / "out")
    rgb = recipe.mirror_image(0)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    rows = scorer.score([rgb, Image.fromarray(rgb), buffer.getvalue()])
    assert len({row["quality"] for row in rows}) == 1
    assert scorer.score(np.stack([rgb] * 3)) == [scorer.score(rgb)] * 3
    assert rows[0]["path"] is None
    with pytest.raises(TypeError, match="cannot score a float"):
        scorer.score(0.5)


def test_pixels_as_float(small: Path, tmp_path: Path) -> None:
    assert export.main(["--weights", str(small), "--output", str(tmp_path / "out"), "--input", "float32"]) == 0
    scorer, other = load_scorer(tmp_path / "out"), load_scorer(small.parent / "out")
    rgb = recipe.mirror_image(0)
    assert scorer.dtype == np.float32
    assert scorer.score(rgb)["quality"] == pytest.approx(other.score(rgb)["quality"], abs=1e-5)


def test_half_precision(small: Path, tmp_path: Path) -> None:
    assert export.main(["--weights", str(small), "--output", str(tmp_path / "out"), "--precision", "fp16"]) == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert 1e-6 < settings["check"]["largest_difference"] < 5e-3
    types = Counter(item.data_type for item in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer)
    assert types[onnx.TensorProto.FLOAT16] > types[onnx.TensorProto.FLOAT]


def test_int8(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights for each channel in int8; the ranges come from the folder, and its other half is the check."""
    faces = tmp_path / "my faces"
    faces.mkdir()
    for seed in range(80):
        Image.fromarray(recipe.mirror_image(seed)).save(faces / f"{seed}.png")
    (faces / "broken.png").write_bytes(b"\x89PNG\r\n")
    command = ["--weights", str(small), "--precision", "int8", "--calibration", str(faces), "--threads", "1"]
    monkeypatch.setattr(write, "LOWEST_RANK_CORRELATION", 1.1)
    assert export.main([*command, "--output", str(tmp_path / "none")]) == 1
    assert "int8 ranks 40 held-out faces of my faces with a rank" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my faces"]
    monkeypatch.setattr(write, "LOWEST_RANK_CORRELATION", 0.5)
    assert export.main([*command, "--output", str(tmp_path / "out")]) == 0
    model = onnx.load(tmp_path / "out" / "model.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["DequantizeLinear"] > kinds["Conv"] > 5
    kernels = [item for item in model.graph.initializer if len(item.dims) == 4]
    assert Counter(item.data_type for item in kernels)[onnx.TensorProto.INT8] == kinds["Conv"]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["calibration"] == {"on": "my faces", "faces": 40, "enough": False}
    assert "not enough for real use" in (tmp_path / "out" / "README.md").read_text()
    found = load_scorer(tmp_path / "out").score(recipe.mirror_image(0))
    expected = load_scorer(small.parent / "out").score(recipe.mirror_image(0))
    assert found["quality"] != expected["quality"]


def test_samples_are_not_enough(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibration, held_out = Faces(None, 64).crops(Scorer(weights=small, device="cpu"))
    assert (len(calibration), len(held_out)) == (32, 32)
    assert not (calibration[:, None] == held_out).all(axis=(2, 3, 4)).any()
    with pytest.raises(ValueError, match="holds 0 usable faces; at least 32"):
        Faces(tmp_path, 64).crops(Scorer(weights=small, device="cpu"))


def test_factors_have_a_limit_of_their_own() -> None:
    write._require_equal(write.Check("faces", 1, 0.004, 1.0, of_a_factor=0.019), "fp16")
    wrong = (0.006, 0.0, "by 0.006, and 0.005"), (0.0, 0.021, "by 0.021 in a factor, and 0.02")
    for quality, factor, message in wrong:
        with pytest.raises(RuntimeError, match=f"differs from torch {message} is allowed in fp16"):
            write._require_equal(write.Check("faces", 1, quality, 1.0, factor), "fp16")


def test_nothing_is_written_when_the_graph_differs(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(write.LARGEST_DIFFERENCE, "fp32", 0.0)
    assert export.main(["--weights", str(small), "--output", str(tmp_path / "out")]) == 1
    assert "0 is allowed in fp32: nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "dsl-fiqa"], "dsl-fiqa is not exported: a score is the mean over 20 random crops"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--method", "fiqa"], "method 'fiqa' is none of"),
        (["--weights", "mfn"], "no method of"),
    ],
)
def test_wrong_calls(tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([*flags, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_calibration_is_for_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        export.main(["--output", str(tmp_path / "out"), "--calibration", str(tmp_path)])
    assert ended.value.code == 2
    assert "--calibration is for --precision int8, not fp32" in capsys.readouterr().err


def test_missing_packages_are_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph, "find_spec", lambda name: None)
    assert export.main(["--weights", str(small), "--output", str(tmp_path / "out")]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_quantised_ranges_come_from_the_faces(small: Path) -> None:
    """Bright faces and dark ones give other scales to the same network."""
    model = onnx.load(small.parent / "out" / "model.onnx")
    crops = np.stack([recipe.mirror_image(seed) for seed in range(8)])
    scales = [
        {item.name: onnx.numpy_helper.to_array(item) for item in quantise(model, faces).graph.initializer
         if item.name.endswith("_scale") and not item.dims}
        for faces in (crops, crops // 8)
    ]
    assert scales[0].keys() == scales[1].keys()
    assert sum(scales[0][name] != scales[1][name] for name in scales[0]) > 5


def test_a_checkpoint_of_ours(tmp_path: Path, golden: Path) -> None:
    """Text features that were stored are taken as they are."""
    network = ClibFiqa.from_tensors(recipe_tensors(golden / "clip_tiny_keys.json"))
    with torch.no_grad():
        network.text_features.copy_(network.text_features.flip(0))
    tensors = network.to_tensors(text_tower=False)
    save_checkpoint(tmp_path / "ours.safetensors", tensors, {"system": "clib-fiqa"})
    assert export.main(["--weights", str(tmp_path / "ours.safetensors"), "--output", str(tmp_path / "out")]) == 0
    rgb = recipe.mirror_image(0)
    expected = Scorer(weights=tmp_path / "ours.safetensors", device="cpu").score(rgb)
    assert load_scorer(tmp_path / "out").score(rgb)["quality"] == pytest.approx(expected.quality, abs=1e-4)
