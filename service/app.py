"""The application: what each address answers. `python -m service` runs it."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
from fastapi import FastAPI, File, HTTPException, Query, Response, UploadFile
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import BaseModel, ConfigDict
from starlette.middleware.trustedhost import TrustedHostMiddleware

from faces.reader import ImageError
from faces.workers import Loaded
from model.cores import available_cores
from scoring import Score, Scorer, list_models
from scoring.contract import Prepared
from scoring.methods import METHODS
from scoring.region_map import RegionMap
from scoring.report import PAGES
from scoring.tables import row_of

from .batching import Batcher, Closed, Full
from .limits import BoundedRequests, Limits
from .metrics import Measured, Metrics

STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PICTURE_SIDE = 224  # at most, of a crop in an answer

Item: TypeAlias = Loaded[Prepared | list[Prepared]]
Axis: TypeAlias = Literal["quality", "blur", "occlusion", "pose", "expression", "illumination"]


class Result(BaseModel):
    """One face, or one image without a score. Columns of `scoring.tables.row_of` that are not named here come too."""

    model_config = ConfigDict(extra="allow")

    index: int
    """Place of the image in the request, from 0. An image with several faces has a result for each."""
    filename: str | None
    status: str
    """`ok`, or why there is no score."""
    quality: float | None
    factors: dict[str, dict[str, float]] | None = None
    quality_distribution: list[float] | None = None
    percentile: float | None = None
    picture: str | None = None
    """With `pictures`: what the network saw, a WebP as a data URL."""


class Answer(BaseModel):
    """The results of a request, in the order of its images."""

    model: str
    results: list[Result]
    scored: int
    failed: int


class Model(BaseModel):
    """Known weights."""

    name: str
    method: str
    range: tuple[float, float] | None
    higher_is_better: bool
    licence: str
    aligned: bool
    present: bool


class Models(BaseModel):
    """What this service scores with, and what is known besides."""

    serving: str
    weights: str
    levels: dict[str, list[str]]
    percentile_set: str | None
    maps: bool
    known: list[Model]


class Health(BaseModel):
    """How the service is."""

    status: str
    waiting: int
    capacity: int


class Map(BaseModel):
    """What in the face lowers the value of an axis."""

    axis: str
    status: str
    """`ok`, or why there is no map."""
    picture: str | None = None
    regions: dict[str, float] = {}
    """Of each region of the face, what it costs."""


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the body is no multipart form"},
    408: {"model": Problem, "description": "the body did not arrive in time"},
    413: {"model": Problem, "description": "too many images, or too large a body"},
    429: {"model": Problem, "description": "too much is waiting; try again later", "headers": RETRY},
    503: {"model": Problem, "description": "the service ends, or the answer took too long", "headers": RETRY},
}


class Service:
    """A scorer, the threads that read images for it, and the thread that scores."""

    def __init__(self, scorer: Scorer, limits: Limits, readers: int) -> None:
        self.scorer, self.limits, self.metrics = scorer, limits, Metrics()
        self.name = f"{scorer.method}, {scorer.weights.name}"
        self.threads = torch.get_num_threads()
        # A reader with threads of its own for each operation would take the cores from the thread that scores.
        self.readers = ThreadPoolExecutor(readers, "reader", torch.set_num_threads, (1,))
        self.batcher: Batcher[Item, list[Score]] = Batcher(self._score_batch, scorer.batch_size, limits.waiting)
        self.metrics.watch_waiting(lambda: self.batcher.taken)

    def _score_batch(self, items: list[Item]) -> list[list[Score]]:
        """The scores of each item, those of its faces."""
        torch.set_num_threads(self.threads)  # of this thread; the readers have set 1 for all that came after them
        self.metrics.batches.observe(len(items))
        return self.scorer.score_each(items)

    @asynccontextmanager
    async def bounded(self, count: int) -> AsyncIterator[None]:
        """Hold places for images while they are worked on, for a bounded time. Raises HTTPException: 429 when too few
        places are free, 503 when the time is over or the service ends."""
        try:
            self.batcher.reserve(count)
        except Full as full:
            raise HTTPException(429, "too many images are waiting", {"Retry-After": str(full.retry_after)}) from full
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except (TimeoutError, Closed) as error:
            why = "the service ends" if isinstance(error, Closed) else f"no answer within {self.limits.seconds:g} s"
            raise HTTPException(503, why, {"Retry-After": "5"}) from error
        finally:
            self.batcher.release(count)

    async def answer(self, uploads: Sequence[UploadFile], pictures: bool) -> Answer:
        """Read and score the images of a request. The places for them are reserved."""
        scored = await asyncio.gather(*(self._results(i, upload, pictures) for i, upload in enumerate(uploads)))
        results = [result for found in scored for result in found]
        for result in results:
            self.metrics.images.labels(result.status).inc()
        count = sum(result.quality is not None for result in results)
        return Answer(model=self.name, results=results, scored=count, failed=len(results) - count)

    async def _results(self, index: int, upload: UploadFile, pictures: bool) -> list[Result]:
        item = await self.load(upload)
        if item.value is None:
            return [self._result(index, upload, Score(None, item.status), None)]
        scores = await asyncio.wrap_future(self.batcher.submit(item))
        faces = item.value if isinstance(item.value, list) else [item.value]
        shown = [data_url(face.crops[0]) for face in faces] if pictures else [None] * len(faces)
        return [self._result(index, upload, *face) for face in zip(scores, shown, strict=True)]

    @staticmethod
    def _result(index: int, upload: UploadFile, score: Score, picture: str | None) -> Result:
        row = row_of(score)
        del row["path"]
        return Result(index=index, filename=upload.filename, picture=picture, **row)

    async def load(self, upload: UploadFile) -> Item:
        """An uploaded image, decoded and prepared by one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, self._load, upload)

    def _load(self, upload: UploadFile) -> Item:
        return self.scorer.load(upload.file.read())  # read here: no more files are in memory than there are threads

    def region_map(self, content: bytes, axis: Axis) -> RegionMap:
        """The map of an image, made in a thread of the readers with the threads of scoring: it scores many crops."""
        torch.set_num_threads(self.threads)
        try:
            return self.scorer.region_map(content, axis)
        finally:
            torch.set_num_threads(1)

    def close(self) -> None:
        """Score what waits, and end the threads."""
        self.batcher.close()
        self.readers.shutdown(cancel_futures=True)


def create_app(
    scorer: Scorer, limits: Limits | None = None, readers: int | None = None, host: str = "127.0.0.1"
) -> FastAPI:
    """The application with this scorer. `readers`: threads that read images (default: the number of cores).

    With a `host` of this computer alone, requests for any other host are refused: a page of the web whose name was made
    to lead here cannot read answers.
    """
    limits = limits or Limits()
    service = Service(scorer, limits, readers or available_cores())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Face image quality",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from the network
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(BoundedRequests, limits=limits)
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    app.add_middleware(Measured, metrics=service.metrics)  # the outermost, so that it counts refusals too
    add_interface(app, service)
    add_pages(app)
    return app


DESCRIPTION = "Scores face images: how useful each one is to face recognition, and why. A higher quality is better."


def add_interface(app: FastAPI, service: Service) -> None:
    """What programs call."""
    limits = service.limits

    @app.post("/score", responses=REFUSALS)
    async def score(
        images: Annotated[list[UploadFile], File(min_length=1, description="image files")],
        pictures: Annotated[bool, Query(description="also give what the network saw of each image")] = False,
    ) -> Answer:
        """Score several images. A bad one has its status; it never fails the others."""
        if len(images) > limits.images:
            raise HTTPException(413, f"{len(images)} images: at most {limits.images} are taken at a time")
        async with service.bounded(len(images)):
            return await service.answer(images, pictures)

    @app.post("/map", responses={**REFUSALS, 404: {"model": Problem, "description": "the method has no map"}})
    async def region_map(
        image: Annotated[UploadFile, File()],
        axis: Axis = "quality",
    ) -> Map:
        """Show which parts of the face lower its quality, or the probability of a factor's best level."""
        try:
            async with service.bounded(1):
                make = partial(service.region_map, await image.read(), axis)
                found = await asyncio.get_running_loop().run_in_executor(service.readers, make)
        except ImageError as error:
            return Map(axis=axis, status=error.status)
        except ValueError as error:
            raise HTTPException(404, str(error)) from error
        return Map(axis=axis, status="ok", picture=data_url(found.overlay()), regions=found.regions)

    @app.get("/models")
    async def models() -> Models:
        """What this service scores with, and what is known besides."""
        from model.prompts import AXES

        fields = Model.model_fields
        known = [Model(**{name: getattr(model, name) for name in fields}) for model in list_models()]
        percentiles = service.scorer.percentiles
        return Models(
            serving=service.scorer.method,
            weights=service.scorer.weights.name,
            levels={axis: list(levels) for axis, levels in AXES.items()},
            percentile_set=percentiles.set if percentiles else None,
            maps=METHODS[service.scorer.method].aligned,
            known=known,
        )

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Whether images are scored: 200, else 503."""
        alive = service.batcher.is_alive
        response.status_code = 200 if alive else 503
        status = "ok" if alive else "ending"
        return Health(status=status, waiting=service.batcher.taken, capacity=service.batcher.capacity)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)


def add_pages(app: FastAPI) -> None:
    """What people open."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": POLICY})

    @app.get("/parts.css", include_in_schema=False)
    async def shared_style() -> FileResponse:
        return FileResponse(PAGES / "parts.css")

    @app.get("/parts.js", include_in_schema=False)
    async def shared_script() -> FileResponse:
        return FileResponse(PAGES / "parts.js")

    app.mount("/static", StaticFiles(directory=STATIC))


def data_url(rgb: Any) -> str:
    """An RGB uint8 image (H, W, 3) as a WebP in a data URL."""
    image = Image.fromarray(rgb)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
