"""Export a scorer as ONNX, with a Python file that needs neither torch nor this repository: a folder for a product.

    python export.py --output bundle                                          the default model in fp32
    python export.py --weights CLIB-FIQA_R50.pth --output bundle --precision fp16
    python export.py --output bundle --precision int8 --calibration my_faces  ranges of int8 from faces like yours

The folder holds model.onnx, scorer.py, settings.json and README.md. A bundle takes aligned crops: photographs are
aligned with `python -m faces.align`. The graph is compared with the torch scorer before anything is written.
Exit code: 0 done, 1 the graph differs from torch, 2 the call was wrong, 130 after Ctrl-C. More: docs/export.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import THREADS_HELP, exit_code, let_threads_sleep, positive, set_threads
from model.files import only_run

PRECISIONS = ("fp32", "fp16", "int8")
METHODS_HELP = "clib-fiqa, cr-fiqa, ediffiqa or diffiqa-r (default: the one that --weights are for)"
CHECKED, CALIBRATED = 64, 1024  # faces at most


def run(args: argparse.Namespace) -> int:
    """Write the bundle, and print what was checked."""
    from bundle.int8 import ENOUGH, Faces
    from bundle.write import export

    if args.threads:
        set_threads(args.threads)
    faces = Faces(args.calibration, CALIBRATED if args.precision == "int8" else CHECKED)
    if args.precision == "int8" and args.calibration is None:
        print(
            "note: int8 is calibrated on the six samples and damaged versions of them, which is not enough for real"
            f" use: give --calibration with at least {2 * ENOUGH} aligned faces of your own captures",
            file=sys.stderr,
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with only_run(args.output):
        check = export(args.weights, args.method, args.output, args.precision, args.input, faces)
    print(
        f"{args.output}: on {check.faces} faces onnxruntime differs from torch by {check.largest_difference:.1g} at"
        f" most, in a factor by {check.of_a_factor:.1g}; rank correlation {check.rank_correlation:.4f}"
    )
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("export.py", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--weights", metavar="FILE_OR_NAME", help="checkpoint (default: the method's own, in weights/)")
    add("--method", metavar="METHOD", help=METHODS_HELP)
    add("--output", type=Path, required=True, metavar="FOLDER", help="the bundle; files of an older one are replaced")
    add("--precision", choices=PRECISIONS, default="fp32", help="(default fp32)")
    add("--input", choices=("uint8", "float32"), default="uint8", help="type of the pixels, 0 to 255 (default uint8)")
    add("--calibration", type=Path, metavar="FOLDER", help="int8: faces like those that will be scored")
    add("--threads", type=positive, metavar="N", help=THREADS_HELP)
    args = parser.parse_args(arguments)
    if args.calibration and args.precision != "int8":
        parser.error(f"--calibration is for --precision int8, not {args.precision}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: `command_line.exit_code`."""
    let_threads_sleep()
    args = parse(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
