"""Scoring over HTTP, and a local page to look at faces.

    python -m service                                          http://127.0.0.1:8000, for this computer only
    python -m service --port 9000 --weights clib-fiqa
    python -m service --faces all --rotate auto                every face of a picture, also one that lies on its side

`POST /score` takes several images and gives a result for each of them, with --faces all for each face. `GET /models`,
`/health` and `/metrics` say what is there and how it goes; `/openapi.json` describes the interface. Uploads are held in
memory or in temporary files until they are scored, and are never kept. More: docs/service.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from command_line import THREADS_HELP, exit_code, keep_freed_memory, let_threads_sleep, natural, positive, set_threads


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m service", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, for this computer only)")
    add("--port", type=natural, default=8000, help="default: 8000; 0 takes a free one")
    add("--method", metavar="METHOD", help="default: the one that --weights are for")
    add("--weights", metavar="FILE_OR_NAME", help="checkpoint (default: the one in weights/)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 on CUDA, else fp32")
    add("--align", choices=("auto", "yes", "no"), default="auto", help="find and align faces (default: unless 112x112)")
    add("--faces", choices=("largest", "central", "all"), default="largest", help="which count (default: largest)")
    add("--rotate", choices=("no", "auto"), default="no", help="auto: find faces on a side or upside down too")
    add("--bands", metavar="FILE", help="table of `evaluate.py bands` (default: the one beside the weights)")
    add("--batch-size", type=positive, metavar="N", help="images the network sees at once")
    add("--threads", type=positive, metavar="N", help=THREADS_HELP)
    add("--readers", type=positive, metavar="N", help="threads that decode images and find faces (default: the cores)")
    add("--waiting", type=positive, default=128, metavar="N", help="images that may wait (default: 128); then 429")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> int:
    """Serve until the process is told to stop."""
    try:
        import uvicorn

        from service.app import create_app
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install -r requirements-service.txt") from error
    from scoring import Scorer
    from service.limits import Limits

    if args.threads:
        set_threads(args.threads)
    limits = Limits(waiting=args.waiting)
    scorer = Scorer(
        args.method,
        args.weights,
        args.device,
        args.precision,
        args.align,
        args.batch_size,
        bands=args.bands,
        faces=args.faces,
        rotate=args.rotate,
        max_bytes=limits.image_bytes,
    )
    app = create_app(scorer, limits, args.readers, args.host)
    uvicorn.run(app, host=args.host, port=args.port, access_log=False, server_header=False)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    let_threads_sleep()
    args = parse(arguments)
    keep_freed_memory()
    return exit_code(lambda: run(args), "stopped")


if __name__ == "__main__":
    sys.exit(main())
