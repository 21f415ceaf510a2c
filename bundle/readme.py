"""The README.md of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PACKAGES = "numpy pillow onnxruntime"


def readme(settings: Mapping[str, Any]) -> str:
    """What a person must know who has the folder and not the repository."""
    entry, weights = settings["input"], settings["weights"]
    side = entry["size"]
    parts = [
        f"# {settings['method']} in ONNX, {settings['precision']}",
        "Face image quality of aligned face crops: higher is better.",
        f"```\npip install {PACKAGES}\npython scorer.py crops --output scores.csv\n```",
        '```python\nfrom scorer import Scorer\n\nrow = Scorer().score("face.png")\nprint(row["quality"])\n```',
        "## The network",
        f"- `model.onnx`, input `{entry['name']}`: {entry['type']} (N, {side}, {side}, 3), RGB, values from 0 to 255, "
        "any N. Normalisation is inside the graph.",
        *[_output(name, settings) for name in settings["outputs"]],
        "## Aligned crops",
        "A crop shows one face, upright, on the ArcFace template: in 112x112 pixels the eyes lie at (38.3, 51.7) and "
        "(73.5, 51.5), the nose at (56.0, 71.7), and the corners of the mouth at (41.5, 92.4) and (70.7, 92.2). Crops "
        f"of another size are resized to {side}x{side} (Pillow, bilinear, antialiased), as `scorer.py` does. For the "
        "same scores your program must do the same. A photograph that is not aligned gets a score that means nothing. "
        "In the repository, `python -m faces.align PHOTOGRAPHS --output CROPS` makes such crops.",
        "## Checked",
        *_checks(settings),
        "## Licence",
        f"The code is MIT. The weights (`{weights['file']}`, sha256 {weights['sha256'][:16]}…): {weights['licence']}.",
    ]
    lines: list[str] = []
    for part in parts:  # items of a list stay together
        lines += [part] if part.startswith("- ") and lines and lines[-1].startswith("- ") else ["", part]
    return "\n".join(lines).lstrip("\n") + "\n"


def _output(name: str, settings: Mapping[str, Any]) -> str:
    if name != "quality":
        levels = settings["axes"][name]
        return f"- Output `{name}`: float32 (N, {len(levels)}), probabilities of {', '.join(levels)}."
    bounds = "without bounds" if settings["range"] is None else "from {} to {}".format(*settings["range"])
    table = settings["percentiles"]
    set_name = f" `settings.json` holds its percentiles on {table['set']}." if table else ""
    return f"- Output `quality`: float32 (N,), {bounds}. It ranks faces, it is no probability.{set_name}"


def _checks(settings: Mapping[str, Any]) -> list[str]:
    check = settings.get("check")
    if check is None:
        return ["Not checked."]
    lines = [
        f"- onnxruntime beside the torch scorer, on {check['faces']} faces of {check['on']}: largest difference of a "
        f"quality {check['largest_difference']:.2g}, of a probability of a factor {check['of_a_factor']:.2g}, rank "
        f"correlation of the qualities "
        f"{check['rank_correlation']:.5f}."
    ]
    if calibration := settings.get("calibration"):
        lines.append(f"- int8 was calibrated on {calibration['faces']} other faces of {calibration['on']}.")
        if not calibration["enough"]:
            lines.append(
                "- **These faces are not enough for real use.** Export again with `--calibration FOLDER`, a folder of "
                "aligned faces of your own captures."
            )
    return lines
