"""Serve a collection over HTTP: the page, its API (OpenAPI at /openapi.json), the videos by Range requests.

Only files that lie in the collection's roots are sent. No address in a request is fetched; videos that were indexed
from an address are read there for previews and clips. Uploads are limited and not kept. Bound to other than this
machine's own address, every request needs a token.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi import Path as PathParameter
from fastapi import Query as Parameter
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from internvideo import __version__
from internvideo.errors import InternVideoError, RunError
from internvideo.features.remote_files import local_copy, url_of
from internvideo.search.batching import BusyError, Limits, QueryBatches
from internvideo.search.calibration import parse_level
from internvideo.search.collection import Collection
from internvideo.search.export import format_list
from internvideo.search.finding import MAX_TOP, Answer
from internvideo.search.guard import Guard, is_loopback
from internvideo.search.preview import MAX_PREVIEW_SECONDS, write_preview
from internvideo.search.query import MAX_TEXT, Example, Query
from internvideo.search.records import VideoRecord
from internvideo.search.reranking import MAX_RERANKED
from internvideo.search.where import MAX_LENGTH
from internvideo.video.cut import cut

MAX_UPLOAD = 256 * 2**20
"""Bytes of a picture or clip that is searched for."""
MAX_CLIP_SECONDS = 600.0
MAX_HEAVY = 2
"""Requests that decode or encode video at the same time; further ones are told to come back."""
EVENT_SECONDS = 1.0
MAX_LISTENERS = 64
KEEP_ALIVE_SECONDS = 75
TYPES = dict.fromkeys((".mp4", ".m4v", ".mov"), "video/mp4") | {".webm": "video/webm", ".mkv": "video/x-matroska"}
PAGE = Path(__file__).parent / "page"

Id = Annotated[int, PathParameter(ge=0, le=2**62)]
Seconds = Annotated[float, Parameter(ge=0, le=1e7, allow_inf_nan=False)]


class AnnotatedAction(BaseModel):
    """An action of the annotations of a video; times in seconds, score None for what a person wrote."""

    start: float
    end: float
    label: str
    score: float | None


class FoundMoment(BaseModel):
    """A part of a video that fits the query; times in seconds."""

    video: int
    path: str
    start: float
    end: float
    duration: float
    score: float
    p_value: float | None
    labels: list[str]
    actions: list[AnnotatedAction]
    likelihood: float | None


class SearchAnswer(BaseModel):
    """Moments, best first; where nothing fits, the nearest ones."""

    nothing_fits: bool
    threshold: float | None
    windows: int
    moments: list[FoundMoment]
    nearest: list[FoundMoment]


class VideoDetails(BaseModel):
    """A video of the collection; `labels` are (start, end, label) of its shortest windows, `actions` of annotations."""

    id: int
    path: str
    duration: float
    fps: float
    width: int
    height: int
    damage: str
    playable: bool
    labels: list[tuple[float, float, str]]
    actions: list[AnnotatedAction]
    captions: list[str]


class Asked(BaseModel, extra="forbid"):
    """The parameters of a search."""

    q: Annotated[str, Field(max_length=MAX_TEXT, description="What to look for.")] = ""
    like: Annotated[int | None, Field(ge=0, le=2**62, description="Id of a video to look for.")] = None
    t: Annotated[float | None, Field(ge=0, le=1e7, allow_inf_nan=False, description="Time in it, s.")] = None
    top: Annotated[int, Field(ge=1, le=MAX_TOP)] = 10
    where: Annotated[str, Field(max_length=MAX_LENGTH, description="Filter: duration > 60.")] = ""
    threshold: Annotated[str, Field(max_length=20, description="1%, 5%; empty for none.")] = ""
    rerank: Annotated[int, Field(ge=0, le=MAX_RERANKED, description="Moments for the caption decoder.")] = 0

    @property
    def level(self) -> float | None:
        """The threshold. Raises RecipeError."""
        return parse_level(self.threshold) if self.threshold.strip() else None


class Listed(Asked):
    """The parameters of a search whose moments are downloaded."""

    format: Annotated[str, Field(pattern="^(csv|json|edl)$")] = "csv"


class Service:
    """What the routes do with a collection."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self._batches = QueryBatches(collection)
        self._heavy = threading.BoundedSemaphore(MAX_HEAVY)
        self.listeners = 0

    @contextmanager
    def heavy(self) -> Iterator[None]:
        """Do something that decodes video, unless too many do. Raises HTTPException 503."""
        if not self._heavy.acquire(timeout=10):
            raise HTTPException(503, "busy: try again", {"retry-after": "5"})
        try:
            yield
        finally:
            self._heavy.release()

    def video(self, id_: int) -> VideoRecord:
        """Return a video whose file lies in the roots. Raises HTTPException 404."""
        snapshot = self.collection.store.snapshot()
        if id_ not in snapshot.index_of:
            raise HTTPException(404, "no such video in the collection")
        record = snapshot.videos[snapshot.index_of[id_]]
        real, roots = os.path.realpath(record.path), [os.path.realpath(root) for root in self.collection.roots]
        if address := url_of(record.path):  # it has no links; what is gone is told when it is read
            real, roots = address, [*self.collection.roots]
        inside = any(real.startswith(os.path.join(root, "")) for root in roots)
        if not inside or not (address or os.path.exists(real)):
            raise HTTPException(404, "the file is gone, or not in the folders of the collection")
        return record

    async def search(self, asked: Asked) -> Answer:
        """Search by parameters; texts of several users together. Raises InternVideoError, HTTPException."""
        if asked.like is not None or asked.rerank:
            return await asyncio.to_thread(self.search_by_video, asked)
        try:
            return await self._batches.search(Query(asked.q), Limits(asked.top, asked.where, asked.level))
        except BusyError as error:
            raise HTTPException(503, "busy: try again", {"retry-after": "5"}) from error

    def search_by_video(self, asked: Asked, upload: Path | None = None) -> Answer:
        """Search with what must be decoded, such as an uploaded file. Raises InternVideoError, HTTPException."""
        examples = []
        if asked.like is not None:
            examples.append(Example(self.video(asked.like).path, asked.t))
        if upload is not None:
            examples.append(Example(str(upload)))
        arguments: dict[str, Any] = {"top": asked.top, "where": asked.where, "threshold": asked.level}
        with self.heavy():
            return self.collection.search(asked.q, like=examples, rerank=asked.rerank, **arguments)

    def details(self, id_: int) -> VideoDetails:
        """Describe a video, with what classifiers say of it."""
        record, records = self.video(id_), self.collection.store.records
        shortest = record.windows[:, 2] == record.windows[:, 2].min()
        labels: list[tuple[float, float, str]] = []
        for name, (_, classes) in records.classifiers().items():
            if (known := records.video_labels(id_, name)) is not None:
                for window, index in zip(record.windows[shortest], known[0][shortest], strict=True):
                    labels.append((float(window[0]), float(window[1]), classes[int(index)]))
        playable = os.path.isfile(record.path)
        names = ("id", "path", "duration", "fps", "width", "height", "damage")
        actions = [AnnotatedAction(**vars(one)) for _, one in records.annotations("action", id_)]
        return VideoDetails(
            **{name: getattr(record, name) for name in names},
            playable=playable,
            labels=labels,
            actions=actions,
            captions=[one.label for _, one in records.annotations("caption", id_)],
        )

    async def events(self, request: Request) -> AsyncIterator[str]:
        """Yield the state of the collection whenever it changes (server-sent events)."""
        self.listeners += 1
        told = ""
        try:
            while not await request.is_disconnected():
                facts = await asyncio.to_thread(self.collection.facts)
                now = json.dumps({name: facts[name] for name in ("videos", "windows", "progress", "unreadable")})
                yield f"data: {now}\n\n" if now != told else ": \n\n"
                told = now
                await asyncio.sleep(EVENT_SECONDS)
        finally:
            self.listeners -= 1


def create_app(collection: Collection, *, token: str | None = None, local: bool = True) -> Guard:
    """Make the ASGI application of a collection; arguments as `Guard`."""
    app = FastAPI(
        title="internvideo search", version=__version__, docs_url=None, redoc_url=None,
        description="Find the moments of a collection of videos that fit a text, a picture or a clip.",
    )  # fmt: skip
    service = Service(collection)

    @app.exception_handler(InternVideoError)
    def mistake(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    _search_routes(app, service)
    _video_routes(app, service)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=PAGE), "static")
    return Guard(app, token=token, max_body=MAX_UPLOAD + 2**20, local=local)


def _search_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/collection")
    def collection() -> dict[str, Any]:
        """Describe the collection: model, sizes, calibration, labels, progress of indexing."""
        return service.collection.facts()

    @app.get("/api/events", response_class=StreamingResponse)
    async def events(request: Request) -> StreamingResponse:
        """Follow the progress of indexing (server-sent events)."""
        if service.listeners >= MAX_LISTENERS:
            raise HTTPException(503, "too many listeners")
        return StreamingResponse(service.events(request), media_type="text/event-stream")

    @app.get("/api/search", response_model=SearchAnswer)
    async def search(asked: Annotated[Asked, Parameter()]) -> JSONResponse:
        """Find the moments that fit a text, a window of a video, or both."""
        return JSONResponse((await service.search(asked)).to_json())

    @app.post("/api/search")
    def search_by_file(
        file: Annotated[UploadFile, File(description="A picture or a clip.")],
        q: Annotated[str, Form(max_length=MAX_TEXT)] = "",
        top: Annotated[int, Form(ge=1, le=MAX_TOP)] = 10,
        where: Annotated[str, Form(max_length=MAX_LENGTH)] = "",
        threshold: Annotated[str, Form(max_length=20)] = "",
    ) -> SearchAnswer:
        """Find the moments that fit an uploaded picture or clip, and a text if there is one."""
        with tempfile.TemporaryDirectory(prefix="internvideo-") as folder:
            path = Path(folder) / "upload"
            with path.open("wb") as target:
                while block := file.file.read(2**20):
                    target.write(block)
            try:
                answer = service.search_by_video(Asked(q=q, top=top, where=where, threshold=threshold), path)
            except InternVideoError as error:
                raise HTTPException(400, str(error).replace(str(path), "the file")) from error
        return SearchAnswer(**answer.to_json())

    @app.get("/api/export", response_class=Response)
    async def export(asked: Annotated[Listed, Parameter()]) -> Response:
        """Download the moments of a search as a list."""
        text = format_list(asked.format, (await service.search(asked)).moments, asked.q)
        kind = {"csv": "text/csv", "json": "application/json", "edl": "text/plain"}[asked.format]
        headers = {"content-disposition": f'attachment; filename="moments.{asked.format}"'}
        return Response(text, media_type=f"{kind}; charset=utf-8", headers=headers)


def _video_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/videos/{id_}")
    def details(id_: Id) -> VideoDetails:
        """Describe a video, with the labels of its windows."""
        return service.details(id_)

    @app.get("/api/videos/{id_}/file", response_class=FileResponse)
    def file(id_: Id) -> FileResponse:
        """Send the video's file; Range requests are understood."""
        path = service.video(id_).path
        if not os.path.isfile(path):
            raise HTTPException(404, "no file on this machine: take its preview")
        kind = TYPES.get(os.path.splitext(path)[1].lower(), "application/octet-stream")
        return FileResponse(os.path.realpath(path), media_type=kind, headers={"cache-control": "no-cache"})

    @app.get("/api/videos/{id_}/frame", response_class=Response)
    def frame(id_: Id, t: Seconds = 0.0) -> Response:
        """Send the picture of the filmstrip nearest to a time (JPEG)."""
        picture = service.collection.store.records.picture(id_, t)
        if picture is None:
            raise HTTPException(404, "no picture")
        return Response(picture, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    @app.get("/api/videos/{id_}/preview", response_class=FileResponse)
    def preview(id_: Id, start: Seconds = 0.0, end: Seconds = MAX_PREVIEW_SECONDS) -> Response:
        """Send a part of a video as WebM (VP9), for browsers that cannot play its file; times are from `start`."""
        record = service.video(id_)
        with service.heavy(), tempfile.TemporaryDirectory(prefix="internvideo-") as folder:
            target = Path(folder) / "preview.webm"
            with local_copy(record.path) as path:
                write_preview(path, target, start, end)
            return Response(target.read_bytes(), media_type="video/webm")

    @app.get("/api/videos/{id_}/clip", response_class=Response)
    def clip(id_: Id, start: Seconds, end: Seconds) -> Response:
        """Download a part of a video as .mp4."""
        record = service.video(id_)
        if not start < end <= start + MAX_CLIP_SECONDS:
            raise HTTPException(400, f"start < end, at most {MAX_CLIP_SECONDS:g} s")
        with service.heavy(), tempfile.TemporaryDirectory(prefix="internvideo-") as folder:
            target = Path(folder) / "clip.mp4"
            with local_copy(record.path) as path:
                cut(path, target, start, end)
            headers = {"content-disposition": f'attachment; filename="video{id_}_{start:.1f}-{end:.1f}.mp4"'}
            return Response(target.read_bytes(), media_type="video/mp4", headers=headers)


def run_server(
    collection: Collection, *, host: str, port: int, token: str | None, started: Callable[[str], None]
) -> None:
    """Serve until interrupted.

    Args:
        host, port: to listen on; port 0 for any. token: generated if required and not given.
        started: called with the address to open, once connections are accepted.

    Raises:
        RunError: the address cannot be listened on.
    """
    local = is_loopback(host)
    secret = token or (None if local else secrets.token_urlsafe(24))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        found = f"cannot be listened on: {error.strerror or error}"
        raise RunError(f"{host}:{port}", found, "", "choose another --host or --port") from error
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    app: Any = create_app(collection, token=secret, local=local)
    # Clients keep idle connections for 5 s or a minute: a server that closes them first resets requests on their way.
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    started(address + (f"?token={secret}" if secret else ""))
    uvicorn.Server(config).run([listener])
