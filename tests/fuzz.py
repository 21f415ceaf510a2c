"""Coverage-guided fuzzing of every reader (`readers.py`) with atheris: not a test of the suite, since it has no end.

    .venv/bin/pip install atheris
    .venv/bin/python tests/fuzz.py image -max_total_time=300 -rss_limit_mb=2000 -timeout=10
    .venv/bin/python tests/fuzz.py                             lists the readers
    .venv/bin/python tests/fuzz.py all 180 results             each reader for 180 seconds, into results/fuzzing.json
    .venv/bin/python tests/fuzz.py all 180 results image bin   these readers only; the rows of the others stay

What follows the name are flags of libFuzzer. An input that ends in another error than ours, takes more than -timeout
seconds or more memory than -rss_limit_mb is written to a file `crash-…`, `timeout-…` or `oom-…` in the current folder.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
OURS = ["evaluation", "faces", "labels", "model", "methods"]
LIMITS = ["-rss_limit_mb=2000", "-timeout=10"]
COMMAND = "python tests/fuzz.py all {} results"


def main() -> int:
    """Exit code 1 when an input broke a reader, 2 for a call that was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="?", metavar="READER", help="or all")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of libFuzzer; after all: SECONDS RESULTS READER…")
    args = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("error: pip install atheris (Linux, CPython up to the version its page names)", file=sys.stderr)
        return 2
    if args.reader == "all" and len(args.flags) > 1:
        return fuzz_all(int(args.flags[0]), Path(args.flags[1]), args.flags[2:])
    with atheris.instrument_imports(include=OURS):
        from readers import READERS, attempt
    found = [reader for reader in READERS if reader.name == args.reader]
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

        atheris.Setup([sys.argv[0], str(corpus), *args.flags], lambda content: attempt(reader, path, content))
        atheris.Fuzz()
    return 0


def fuzz_all(seconds: int, results: Path, names: list[str]) -> int:
    """Each reader in a process of its own, one after the other; a row for each in RESULTS/fuzzing.json."""
    from readers import READERS

    from recipes.default_model.reports.results import Column, read_result, write_results

    file = results / "fuzzing.json"
    old = {row[0]: row for row in read_result(file).rows} if file.is_file() else {}
    columns = [Column("reader"), Column("seconds"), Column("inputs", "{:,}"), Column("branches at the start"),
               Column("branches at the end"), Column("inputs that broke it")]  # fmt: skip
    for reader in READERS:
        if names and reader.name not in names:
            continue
        command = [sys.executable, __file__, reader.name, f"-max_total_time={seconds}", *LIMITS]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        row = [reader.name, seconds, *found_in(done.stdout.decode(errors="replace"), done.returncode)]
        print(row, flush=True)
        if done.returncode:
            sys.stdout.buffer.write(done.stdout[-6000:])
        old[reader.name] = row
        rows = [old[reader.name] for reader in READERS if reader.name in old]
        write_results(file, "Coverage-guided fuzzing of the readers", COMMAND.format(seconds), columns, rows)
    return int(any(row[-1] for row in old.values()))


def found_in(log: str, code: int) -> tuple[int, int, int, int]:
    """Executions, branches of our code reached by the whole files and at the end, inputs that broke the reader."""
    runs = [int(number) for number in re.findall(r"^#(\d+)\s", log, flags=re.MULTILINE)]
    branches = [int(number) for number in re.findall(r"\bcov: (\d+)", log)]
    if not branches:
        raise RuntimeError(f"the fuzzer did not begin:\n{log[-2000:]}")
    return max(runs), branches[0], branches[-1], int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
