"""The table of the methods that score."""

from __future__ import annotations

from faces.random_crops import CROPS
from model.clib_fiqa import ClibFiqa
from model.dsl_fiqa import DslFiqa
from model.ediffiqa import EDifFIQA
from model.iresnet import IResNet
from model.prompts import AXES
from model.regressor import QualityRegressor

from .clib_fiqa import ClibFiqaScoring
from .contract import Method
from .cr_fiqa import CrFiqaScoring
from .dsl_fiqa import DslFiqaScoring
from .ediffiqa import FeatureHeadScoring

DEFAULT_METHOD = "clib-fiqa"
METHODS = {
    "clib-fiqa": Method(
        "clib-fiqa",
        ClibFiqa,
        ClibFiqaScoring,
        range=(0.1, 0.9),
        axes=tuple(AXES),
        options=("calibrated",),
    ),
    "cr-fiqa": Method("cr-fiqa-l", IResNet, CrFiqaScoring),
    "ediffiqa": Method("ediffiqa", EDifFIQA, FeatureHeadScoring),
    "diffiqa-r": Method("diffiqa-r", QualityRegressor, FeatureHeadScoring),
    "dsl-fiqa": Method(
        "dsl-fiqa",
        DslFiqa,
        DslFiqaScoring,
        aligned=False,
        crops=CROPS,
        options=("degradation_encoder", "crops", "landmark_folder"),
    ),
}
