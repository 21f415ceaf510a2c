"""Fine-tune CLIP into CLIB-FIQA: label table -> checkpoint. Settings and --help: config_train.py.

    python train.py --data-list labels.tsv --clip-model RN50.pt --checkpoints runs/rn50
    torchrun --nproc-per-node 4 train.py --data-list labels.tsv ...
"""

from __future__ import annotations

import sys

from command_line import exit_code, keep_freed_memory
from config_train import parse_arguments
from methods.clib_fiqa.train import train
from training import processes


def main() -> int:
    """Exit codes: `command_line.exit_code`."""

    def run() -> int:
        keep_freed_memory()
        try:
            train(parse_arguments())
        finally:
            processes.stop()
        return 0

    return exit_code(run, "stopped; the same command with --resume continues after the last saved epoch")


if __name__ == "__main__":
    sys.exit(main())
