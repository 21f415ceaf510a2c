"""The score of one image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from model.prompts import AXES, JOINT_SHAPE, joint_prompts

from .reasons import Reason


@dataclass(frozen=True, repr=False)
class Score:
    """What a method says about one image.

    `quality` is higher for better faces. It is None when the image has no score; `status` then says why: one of
    `faces.reader.ImageError`, or non_finite when the network gave no number. With a score, `status` is "ok", or a
    remark on how the score was made, such as no_landmarks.

    `factors` maps blur, occlusion, pose, expression and illumination to the probabilities of their levels, from worst
    to best. `quality_distribution` holds the probabilities of bad, poor, fair, good and perfect. A method without
    reasons leaves them empty and None. `percentile` is the share, in percent, of the images of a named set
    (`Scorer.percentiles`) that score lower. It is None when the weights hold no such table. `band` is low, medium or
    high, by a measured table (`Scorer.bands`), else None. `reasons` are the reasons to act on, empty when nothing is
    wrong; None when the weights are not calibrated and the face was not looked for, so that nothing is known.
    """

    path: str | None
    status: str = "ok"
    quality: float | None = None
    factors: dict[str, dict[str, float]] = field(default_factory=dict)
    quality_distribution: tuple[float, ...] | None = None
    percentile: float | None = None
    band: str | None = None
    reasons: tuple[Reason, ...] | None = None
    # Where the face lies and how it was aligned: `faces.align.Placed` explains them. They are no part of what a score
    # says, and so equal scores may differ in them.
    face: int | None = field(default=None, compare=False)
    box: tuple[float, ...] | None = field(default=None, compare=False)
    points: tuple[float, ...] | None = field(default=None, compare=False)
    detection: float | None = field(default=None, compare=False)
    aligned_by: str | None = field(default=None, compare=False)
    faces: int | None = field(default=None, compare=False)
    frame: int | None = field(default=None, compare=False)
    """Of a video: from 0 on."""
    time: float | None = field(default=None, compare=False)
    """Of a video: seconds since its first frame."""
    track: int | None = field(default=None, compare=False)
    """Of a video: the same number for the faces of one person in successive frames; None of a frame that was taken
    whole."""

    def label(self, axis: str) -> str | None:
        """The most probable level of a factor or of "quality", or None where there are no probabilities."""
        if axis not in AXES:
            raise ValueError(f"no axis {axis!r}: expected one of {', '.join(AXES)}")
        if axis == "quality":
            levels = dict(zip(AXES[axis], self.quality_distribution or (), strict=False))
        else:
            levels = self.factors.get(axis, {})
        return max(levels, key=levels.__getitem__) if levels else None

    @property
    def sentence(self) -> str | None:
        """The sentence of CLIB-FIQA's 360 that names the most probable level of every axis."""
        labels = {axis: self.label(axis) for axis in AXES}
        if None in labels.values():
            return None
        levels = [AXES[axis].index(str(label)) for axis, label in labels.items()]
        return joint_prompts()[int(np.ravel_multi_index(levels, JOINT_SHAPE))]

    @property
    def advice(self) -> str | None:
        """What the person before the camera can do: a sentence for each reason; None where `reasons` is."""
        return None if self.reasons is None else " ".join(reason.advice for reason in self.reasons)

    def __repr__(self) -> str:
        facts = [repr(self.path)]
        if self.status != "ok":
            facts.append(f"status={self.status!r}")
        if self.quality is not None:
            facts.append(f"quality={self.quality:.4f}")
        facts += [f"band={self.band!r}"] if self.band else []
        facts += [f"{axis}={label!r}" for axis in self.factors if (label := self.label(axis))]
        return f"Score({', '.join(facts)})"
