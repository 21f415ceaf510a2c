"""The 360 sentences of CLIB-FIQA and the six axes they span (Ou et al., CVPR 2024, section 3.3).

Each sentence names one level of five quality factors and one level of quality. The similarity of an image to all
of them is a joint distribution over the six axes; on every axis a higher index is better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product

AXES: dict[str, tuple[str, ...]] = {  # in the order of the joint distribution; levels from worst to best
    "blur": ("hazy", "blurry", "clear"),
    "occlusion": ("obstructed", "unobstructed"),
    "pose": ("profile", "slight angle", "frontal"),
    "expression": ("exaggerated expression", "typical expression"),
    "illumination": ("extreme lighting", "normal lighting"),
    "quality": ("bad", "poor", "fair", "good", "perfect"),
}
FACTORS = ("blur", "occlusion", "pose", "expression", "illumination")
JOINT_SHAPE = (3, 2, 3, 2, 2, 5)
QUALITY_ANCHORS = (0.1, 0.3, 0.5, 0.7, 0.9)  # the score that each level of quality stands for


def joint_prompts() -> list[str]:
    """The 360 sentences, row-major over `JOINT_SHAPE`: the last one describes the best face."""
    return [
        f"a photo of a {blur}, {occlusion}, and {pose} face with {expression} under {illumination}, "
        f"which is of {quality} quality"
        for blur, occlusion, pose, expression, illumination, quality in product(*AXES.values())
    ]


def prompts_hash(prompts: Sequence[str] | None = None) -> str:
    """SHA-256 (hex) of the sentences joined by newlines; checkpoints record it beside their text features."""
    prompts = joint_prompts() if prompts is None else prompts
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
