"""An HTTP server for an exported DenseNet, with FastAPI and ONNX Runtime or JAX.

  python main.py export --workdir=runs/digits --format=onnx --preprocess --output=exports/digits
  python examples/serve/server.py exports/digits/model.onnx --port=8000
  curl -F file=@photo.jpg http://127.0.0.1:8000/predict

A request's body is the image file itself or a form with it.  Nothing is written to disk, and a body
is rejected as soon as it is longer, or comes more slowly, than allowed.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import pathlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

# Lets the script run from a checkout as well as with the package installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import engines
import forms
from batching import Batcher, Busy
from decoders import Decoders, Refused

from densenet_jax.report import pictures
from densenet_jax.weights import Preprocessing

MAX_BYTES = 10 << 20  # of a request's body
GRACE_SECONDS = 5.0  # for the headers of a connection, and in addition to the following for a body
SLOWEST = 50_000  # bytes per second of a body
RETRY_SECONDS = "1"  # a client that was rejected should wait this long
STOP_SECONDS = 10  # after SIGTERM, requests in progress get this time
PAGE = pathlib.Path(__file__).parent / "page.html"
# The page runs its own script and asks this server; it loads nothing from elsewhere.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": _FILE}}
        },
        "application/octet-stream": {"schema": _FILE},
        "image/*": {"schema": _FILE},
    },
}
_REASONS = {
    400: "The body is empty, or a damaged form.",
    408: "The body came too slowly.",
    413: "Too many bytes or pixels.",
    415: "Not a readable image.",
    422: "The image takes too long, or too much memory, to decode.",
    503: "The server is busy.",
}


def create_app(
    engine: engines.Engine,
    *,
    max_batch: int = 32,
    delay: float = 0.002,
    limit: int = 256,
    top: int = 5,
    decoders: int = os.cpu_count() or 1,
    decode_seconds: float = 3.0,
) -> FastAPI:
    """Returns the application: POST /predict, GET /health, and a page at /.

    Args:
      engine: the model; see `engines.load`.
      max_batch, delay: see `Batcher`.
      limit: largest number of requests that are read, decoded, waiting or computed; others get the
        status 503.  Memory is at most limit x MAX_BYTES, and that of the decoders.
      top: number of classes in a response.
      decoders: number of processes that decode images.
      decode_seconds: largest time for decoding an image.
    """
    batcher = Batcher(engine.run, max_batch=max_batch, delay=delay, limit=limit)
    open_requests, mapping = 0, asyncio.Semaphore(1)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        with Decoders(engine.spec, decoders, decode_seconds) as app.state.decode:
            yield
        await batcher.stop()

    app = FastAPI(title="densenet_jax", lifespan=lifespan)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": engine.spec["model"], "held": batcher.held}

    async def answer(body: bytes, cam: bool) -> dict[str, Any]:
        image = await app.state.decode(body)
        if not cam:
            return _predictions(await batcher(image), engine.spec, top)
        heat = None
        if engine.cam is None:
            scores = await batcher(image)
        else:
            async with mapping:  # a request for a map takes as much time as a batch
                scores, heat = await asyncio.to_thread(engine.cam, image)
        found = _predictions(scores, engine.spec, top)
        crop = _data_uri(pictures.shown(image, Preprocessing(**engine.spec["preprocessing"]).ends))
        return {**found, "crop": crop, "cam": None if heat is None else heat.tolist()}

    @app.post(
        "/predict",
        openapi_extra={"requestBody": _BODY},
        responses={status: {"description": reason} for status, reason in _REASONS.items()},
    )
    async def predict(request: Request, cam: bool = False) -> dict[str, Any]:
        """Classifies an image; with `cam`, also returns what the model sees and its map."""
        nonlocal open_requests
        if open_requests >= limit:
            raise _busy()
        open_requests += 1
        try:
            return await answer(await read_image(request), cam)
        except Refused as refused:
            status, reason = refused.args
            raise _busy() if status == 503 else HTTPException(status, reason) from None
        except Busy:
            raise _busy() from None
        finally:
            open_requests -= 1

    return app


def _predictions(scores: np.ndarray, spec: dict[str, Any], top: int) -> dict[str, Any]:
    """Returns what the model answers.

    Args:
      scores: its outputs for an image, [C].
      spec: see `engines.Engine`.
      top: number of classes.

    Returns:
      {"predictions": [{"class", "label", "probability"}, ...]}, the likeliest classes first; of
      several labels all, each with "present": whether it reaches its threshold; of regression all
      in order, with "value" instead of "probability".
    """
    outputs = spec.get("outputs", {})
    task, order = outputs.get("task"), np.argsort(-scores, kind="stable")
    if task == "regression":
        order = np.arange(len(scores))
    elif task != "multilabel":
        order = order[:top]
    unit = "value" if task == "regression" else "probability"
    rows: list[dict[str, Any]] = [
        {"class": int(i), "label": spec["class_names"][i], unit: float(scores[i])} for i in order
    ]
    if task == "multilabel":
        at = np.broadcast_to(outputs.get("thresholds") or 0.5, len(scores))
        for row, i in zip(rows, order, strict=True):
            row["present"] = bool(scores[i] >= at[i])
    return {"predictions": rows}


def _data_uri(image: np.ndarray) -> str:
    """Returns an image [H, W, C] as a PNG in a data URI.

    Of another number of channels than 3 it has the first; of other types than uint8, the range of
    their values.
    """
    pixels = image if image.shape[2] == 3 else image[..., 0]
    if pixels.dtype != np.uint8:
        spread = max(float(np.ptp(pixels)), np.finfo(np.float32).tiny)
        pixels = np.uint8((pixels - np.float32(pixels.min())) / spread * 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _busy() -> HTTPException:
    """Returns the response for a request beyond the limit."""
    headers = {"Retry-After": RETRY_SECONDS}
    return HTTPException(503, "The server is busy; try again in a moment.", headers)


async def read_image(request: Request) -> bytes:
    """Returns the image file of a request: its body, or the file of the form that it is.

    Raises:
      HTTPException: see `read_body`; 400 if the form has no file or is damaged.
    """
    try:
        separator = forms.boundary(request.headers.get("content-type", ""))
        body = await read_body(request)
        image = body if separator is None else forms.file_of(body, separator)
    except forms.FormError as error:
        raise HTTPException(400, str(error)) from None
    if not image:
        raise HTTPException(400, "The body is empty; send an image file: curl -F file=@FILE.")
    return image


async def read_body(request: Request) -> bytes:
    """Returns a request's body, reading at most `MAX_BYTES`.

    Raises:
      HTTPException: 413 if the body or its declared length is too long; 408 if it comes slowly.
    """
    too_long = HTTPException(413, f"The body has more than {MAX_BYTES:,} bytes.")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_BYTES:
        raise too_long
    body, chunks = bytearray(), aiter(request.stream())
    began = asyncio.get_running_loop().time()
    try:
        while True:
            async with asyncio.timeout_at(began + GRACE_SECONDS + len(body) / SLOWEST):
                body += await anext(chunks)
            if len(body) > MAX_BYTES:
                raise too_long
    except StopAsyncIteration:
        return bytes(body)
    except ClientDisconnect:
        raise HTTPException(400, "The client has gone.") from None  # nobody will read it
    except TimeoutError:
        reason = f"The body came more slowly than {SLOWEST:,} bytes per second."
        raise HTTPException(408, reason, {"Connection": "close"}) from None


class Protocol(H11Protocol):
    """HTTP that closes a connection whose first headers do not come in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(GRACE_SECONDS, self._close_without_request)

    def _close_without_request(self) -> None:
        if self.cycle is None:
            self.transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model.onnx or model.stablehlo, exported with --preprocess")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-batch", type=int, default=32, help="most images in a model call")
    parser.add_argument(
        "--delay", type=float, default=0.002, help="seconds that an image waits for others"
    )
    parser.add_argument(
        "--limit", type=int, default=256, help="most requests at a time; others get status 503"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of the model; 0: one for each core"
    )
    parser.add_argument(
        "--decoders", type=int, default=os.cpu_count() or 1, help="processes that decode images"
    )
    parser.add_argument(
        "--decode-seconds", type=float, default=3.0, help="most seconds for decoding an image"
    )
    args = parser.parse_args()
    try:
        engine = engines.load(args.model, args.max_batch, args.threads)
    except engines.EngineError as error:
        sys.exit(f"error: {error}")
    app = create_app(
        engine,
        max_batch=args.max_batch,
        delay=args.delay,
        limit=args.limit,
        decoders=args.decoders,
        decode_seconds=args.decode_seconds,
    )
    url = f"http://{args.host}:{args.port}"
    print(json.dumps({"serving": args.model, "page": url, "url": f"{url}/predict"}), flush=True)
    uvicorn.run(
        app,
        host=args.host,
        port=args.port,
        log_level="warning",
        http=Protocol,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


if __name__ == "__main__":
    main()
