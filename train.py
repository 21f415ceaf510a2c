"""Fine-tune CLIP into CLIB-FIQA: label table -> checkpoint. Settings and --help: config_train.py.

    python train.py --data-list labels.tsv --clip-model RN50.pt --checkpoints runs/rn50
    torchrun --nproc-per-node 4 train.py --data-list labels.tsv ...
"""

from __future__ import annotations

import sys

from command_line import training_exit_code
from config_train import parse_arguments
from methods.clib_fiqa.train import train


def main() -> int:
    """Exit codes: `command_line.exit_code`."""
    return training_exit_code(lambda: train(parse_arguments()), "saved state")


if __name__ == "__main__":
    sys.exit(main())
