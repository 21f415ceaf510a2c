"""Coverage-guided fuzzing of every reader (`readers.py`) with atheris: not a test of the suite, since it has no end.

    .venv/bin/pip install atheris
    .venv/bin/python tests/fuzz.py image -max_total_time=300 -rss_limit_mb=2000 -timeout=10
    .venv/bin/python tests/fuzz.py                             lists the readers

What follows the name are flags of libFuzzer. An input that ends in another error than ours, takes more than -timeout
seconds or more memory than -rss_limit_mb is written to a file `crash-…`, `timeout-…` or `oom-…` in the current folder.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
OURS = ["evaluation", "faces", "labels", "model", "methods"]


def main() -> int:
    """Exit code 1 when an input broke a reader, 2 for a call that was wrong."""
    try:
        import atheris
    except ImportError:
        print("error: pip install atheris (Linux, CPython up to the version its page names)", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=OURS):
        from readers import READERS, attempt
    found = [reader for reader in READERS if reader.name in sys.argv[1:2]]
    if not found:
        print("\n".join(reader.name for reader in READERS))
        return 2
    [reader] = found
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        corpus, path = Path(folder) / "corpus", Path(folder) / f"input{reader.suffix}"
        corpus.mkdir()
        for number, content in enumerate(reader.files):
            (corpus / str(number)).write_bytes(content)

        atheris.Setup([sys.argv[0], str(corpus), *sys.argv[2:]], lambda content: attempt(reader, path, content))
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
