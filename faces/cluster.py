"""Reading and computing over many hosts, by Ray Data: batches of paths go in, their results come out in order.

Ray is an extra (`pip install "ray[data]"`). Tasks on CPUs read and prepare the pictures with the reader of this
package, so that every picture keeps its status. Actors compute: on GPUs where the device is one, otherwise in the
processes that read. Ray Data bounds what lies between them, and starts the work of a killed process again. Only the
driver writes results. So a result exists once, whatever was killed, and an interrupted run goes on from what the driver
has written. With a checkpoint the processes keep what they have finished, too, until the driver has written it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from .finished import IDS, RESULTS, Checkpoint, finished_in, forget, names_hash, results_in, wait_for
from .workers import Loaded, in_lists, load_all

R = TypeVar("R")
WINDOW = 20_000   # batches that are planned at a time: a list of paths may be endless
KEPT = 256   # batches for each computing process, of at least four, that a checkpoint keeps at a time: a whole number
# of `labels.measure.PART_BATCHES`, so that rows have been recorded when their batches are removed
IN_FILE = 8   # batches in one file of a checkpoint, which a killed process computes again; a file takes about 30 ms
CHECKPOINTS_SINCE = 2, 60   # of Ray: with two steps for each file, and these names of files
LOCAL = "local"
QUIET = {   # before Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",   # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs, and how many of its processes compute."""

    address: str = LOCAL
    """local starts a cluster on this machine, auto finds the running one, HOST:PORT names one."""
    actors: int | None = None
    """Processes that compute; each holds the network. Default: one for each GPU, without GPUs one for each CPU."""
    gpus: float = 0
    """GPUs that each of them takes; less than 1 shares one."""
    cpus: float = 1
    """CPUs, and threads, that each of them takes."""
    checkpoint: Checkpoint | None = None
    """Where they keep what they have finished."""

    def results(
        self,
        paths: Iterable[str],
        load: Callable[[str], Any],
        make_compute: Callable[[], Callable[[Sequence[Loaded[Any]]], R]],
        batch_size: int,
        name: str = "batches",
    ) -> Iterator[R]:
        """What `compute` makes of each batch of `batch_size` paths, in their order.

        `load` reads and prepares the picture of a path, in a task; it may raise ImageError, which becomes the status of
        that picture. `make_compute` is called once in each computing process, and returns what is called with each
        batch. Both must be picklable. The batches are those of a run on one machine, and so are the results. With a
        checkpoint the results of a window of batches come when all of them are finished; `name` tells them from those
        of other work in the same run. Raises ImportError without Ray, ConnectionError when there is no cluster at the
        address, and what `Checkpoint.hold` raises.
        """
        batches = in_lists(paths, batch_size)
        if self.checkpoint is None:
            ray = connect(self.address)
            while window := list(islice(batches, WINDOW)):
                yield from self._window(ray, window, load, make_compute)
            return
        with self.checkpoint.hold(name) as kept:
            ray = connect(self.address)
            if tuple(map(int, ray.__version__.split(".")[:2])) < CHECKPOINTS_SINCE:
                raise ImportError(f'--checkpoint needs a newer Ray than {ray.__version__}: pip install -U "ray[data]"')
            while window := list(islice(batches, KEPT * max(4, self._most_actors(ray)))):
                yield from self._kept_window(ray, window, load, make_compute, kept)
                forget(kept)

    def _window(self, ray: Any, batches: list[list[str]], load: Any, make_compute: Any) -> Iterator[Any]:
        blocks = min(len(batches), max(64, 4 * int(ray.cluster_resources().get("CPU", 1))))
        computed = self._computed(ray, dict(enumerate(batches)), blocks, load, make_compute)
        for number, row in enumerate(computed.iter_rows()):
            if row["batch"] != number:
                raise RuntimeError(f"Ray gave batch {row['batch']} in place of {number}: rows would be exchanged")
            yield pickle.loads(row["result"])

    def _kept_window(
        self, ray: Any, batches: list[list[str]], load: Any, make_compute: Any, kept: Path
    ) -> Iterator[Any]:
        """As `_window`, but batches that are finished in `kept` are not computed, and the others become so."""
        names = [names_hash(paths) for paths in batches]
        finished = finished_in(kept)
        missing = {name: paths for name, paths in zip(names, batches, strict=True) if name not in finished}
        if missing:
            actors = self._most_actors(ray)
            blocks = min(len(missing), max(4 * actors, len(missing) // IN_FILE))
            _write(self._computed(ray, missing, blocks, load, make_compute), kept, min(actors, blocks))
            finished = wait_for(kept, missing.keys())
        yield from results_in(finished, names)

    def _computed(self, ray: Any, batches: dict[Any, list[str]], blocks: int, load: Any, make_compute: Any) -> Any:
        """The data set of the names of batches and their pickled results."""
        rows = [{"batch": name, "paths": pickle.dumps(paths)} for name, paths in batches.items()]
        read = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            partial(_read, load), batch_size=1, num_cpus=1
        )
        return read.map_batches(
            _Compute,
            fn_constructor_args=(make_compute, int(self.cpus)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(self._most_actors(ray), len(rows))),
            num_gpus=self.gpus or None,
            num_cpus=self.cpus,
        )

    def _most_actors(self, ray: Any) -> int:
        if self.actors:
            return self.actors
        resources = ray.cluster_resources()
        if self.gpus:
            return max(1, int(resources.get("GPU", 0) / self.gpus))
        return max(1, int(resources.get("CPU", 1) / self.cpus))


def cluster_of(
    engine: str, address: str | None, actors: int | None, device: str, checkpoint: Checkpoint | None = None
) -> Cluster | None:
    """The cluster of a command line's --engine, --address, --actors, --device and --checkpoint; None for the engine
    local.

    A process takes a GPU where the device is CUDA. Raises ValueError for one of the others without the engine ray.
    """
    if engine != "ray":
        if address or actors or checkpoint:
            raise ValueError("--address, --actors and --checkpoint are of the engine ray: add --engine ray")
        return None
    return Cluster(address or LOCAL, actors, gpus=1 if device.startswith("cuda") else 0, checkpoint=checkpoint)


def connect(address: str) -> Any:
    """The module ray, connected to the cluster at the address; a connection that exists is kept.

    The processes import this repository from its path on this host, so other hosts need it at the same path. Raises
    ImportError without Ray, ConnectionError when there is no cluster at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('--engine ray needs Ray: pip install "ray[data]"') from error
    if not ray.is_initialized():
        root = str(Path(__file__).resolve().parent.parent)
        settings: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
        environment = {"env_vars": {"PYTHONPATH": root}}
        before = signal.getsignal(signal.SIGTERM)
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **settings)
        if threading.current_thread() is threading.main_thread():   # Ray has put its own handler in the place of ours
            signal.signal(signal.SIGTERM, before)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray


def _write(computed: Any, kept: Path, tasks: int) -> None:
    """Let so many tasks at a time write the results of `computed`, a block each, with Ray Data's checkpoints.

    Ray's own filter of finished rows is not used, as finished batches are left out before: it would hold another CPU
    and 1 GB for itself, and a cluster of one or two CPUs would wait for ever. Raises OSError where nothing can be
    written.
    """
    from pyarrow.fs import LocalFileSystem
    from ray.data.checkpoint import CheckpointConfig
    from ray.exceptions import RayTaskError

    computed.context.checkpoint_config = CheckpointConfig(
        "batch", str(kept / IDS), delete_checkpoint_on_success=False, override_filesystem=LocalFileSystem()
    )
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)   # its errors are raised too
    try:
        computed.write_parquet(
            str(kept / RESULTS),
            filesystem=LocalFileSystem(),
            ray_remote_args={"num_cpus": 0},   # no CPU is left where all compute
            concurrency=tasks,
            write_page_checksum=True,
        )
    except RayTaskError as error:
        if isinstance(error.cause, OSError) and (code := error.cause.errno):   # of writing; the work's are wrapped
            raise OSError(code, os.strerror(code), str(kept)) from error
        raise


def _read(load: Callable[[str], Any], batch: dict[str, Any]) -> dict[str, list[Any]]:
    """A batch of one row: its paths, read and prepared."""
    paths = pickle.loads(batch["paths"][0])
    return {"batch": [batch["batch"][0]], "loaded": [pickle.dumps(load_all(load, paths), protocol=5)]}


class _Compute:
    """Holds the network in a process of the cluster."""

    def __init__(self, make_compute: Callable[[], Callable[[Sequence[Loaded[Any]]], Any]], threads: int) -> None:
        import torch

        torch.set_num_threads(max(1, threads))
        self.compute = make_compute()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        result = self.compute(pickle.loads(batch["loaded"][0]))
        return {"batch": [batch["batch"][0]], "result": [pickle.dumps(result, protocol=5)]}
