"""The table of the methods that score."""

from __future__ import annotations

from model.clib_fiqa import ClibFiqa
from model.iresnet import IResNet

from .clib_fiqa import ClibFiqaScoring
from .contract import Method
from .cr_fiqa import CrFiqaScoring

DEFAULT_METHOD = "clib-fiqa"
METHODS = {
    "clib-fiqa": Method("clib-fiqa", ClibFiqa, ClibFiqaScoring, range=(0.1, 0.9)),
    "cr-fiqa": Method("cr-fiqa-l", IResNet, CrFiqaScoring),
}
