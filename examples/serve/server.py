"""An HTTP server for an exported DenseNet, with FastAPI and ONNX Runtime or JAX.

  python main.py export --workdir=runs/digits --format=onnx --preprocess --output=exports/digits
  python examples/serve/server.py exports/digits/model.onnx --port=8000
  curl --data-binary @photo.jpg http://127.0.0.1:8000/predict

The body of a request is the image file itself: there is no form to parse, nothing is written to
disk, and a body is rejected as soon as it is longer than allowed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request

# Lets the script run from a checkout as well as with the package installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import engines
from batching import Batcher, Busy

from densenet_jax.data.reading import host
from densenet_jax.weights import Preprocessing

MAX_BYTES = 10 << 20  # of a request's body
MAX_PIXELS = 25_000_000  # of an image; 75 MB when decoded
DECODERS = os.cpu_count() or 1  # images that are decoded at the same time
RETRY_SECONDS = "1"  # a client that was rejected should wait this long


def create_app(
    engine: engines.Engine,
    *,
    max_batch: int = 32,
    delay: float = 0.002,
    limit: int = 256,
    top: int = 5,
) -> FastAPI:
    """Returns the application: POST /predict, GET /health.

    Args:
      engine: the model; see `engines.load`.
      max_batch, delay: see `Batcher`.
      limit: largest number of requests that are read, decoded, waiting or computed; others get the
        status 503.  Memory is at most limit x MAX_BYTES + DECODERS x 3 x MAX_PIXELS bytes.
      top: number of classes in a response.
    """
    batcher = Batcher(engine.run, max_batch=max_batch, delay=delay, limit=limit)
    decoding, open_requests = asyncio.Semaphore(DECODERS), 0

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    app = FastAPI(title="densenet_jax", lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": engine.spec["model"], "held": batcher.held}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        nonlocal open_requests
        if open_requests >= limit:
            raise _busy()
        open_requests += 1
        try:
            body = await read_body(request)
            async with decoding:
                image = await asyncio.to_thread(decode, body, engine.spec)
            del body
            scores = await batcher(image)
        except Busy:
            raise _busy() from None
        finally:
            open_requests -= 1
        best = np.argsort(-scores, kind="stable")[:top]
        names = engine.spec["class_names"]
        return {
            "predictions": [
                {"class": int(i), "label": names[i], "probability": float(scores[i])} for i in best
            ]
        }

    return app


def _busy() -> HTTPException:
    """Returns the response for a request beyond the limit."""
    headers = {"Retry-After": RETRY_SECONDS}
    return HTTPException(503, "The server is busy; try again in a moment.", headers)


async def read_body(request: Request) -> bytes:
    """Returns a request's body, reading at most `MAX_BYTES`.

    Raises:
      HTTPException: 413 if the body or its declared length is too long; 400 if it is empty.
    """
    too_long = HTTPException(413, f"The image has more than {MAX_BYTES:,} bytes.")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_BYTES:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise too_long
    if not body:
        raise HTTPException(400, "The body is empty; send an image file: curl --data-binary @FILE.")
    return bytes(body)


def decode(body: bytes, spec: dict[str, Any]) -> np.ndarray:
    """Decodes and crops an image for the model, [H, W, C].

    Args:
      body: an image file.
      spec: see `engines.Engine`.

    Raises:
      HTTPException: 413 if the header declares too many pixels (checked before decoding); 415 if
        the body is not a readable image.
    """
    given = spec["preprocessing"]
    try:
        height, width = host.dimensions(body)
        if height * width > MAX_PIXELS:
            detail = f"The image has {width} x {height} pixels, more than {MAX_PIXELS:,}."
            raise HTTPException(413, detail)
        return host.eval_crop(
            body,
            channels=spec["channels"],
            narrow=True,
            **Preprocessing(**given).reading,
        )
    except host.ImageError as error:
        detail = f"The body is not a readable image of the formats that predict reads: {error}."
        raise HTTPException(415, detail) from None


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
    args = parser.parse_args()
    try:
        engine = engines.load(args.model, args.max_batch, args.threads)
    except engines.EngineError as error:
        sys.exit(f"error: {error}")
    app = create_app(engine, max_batch=args.max_batch, delay=args.delay, limit=args.limit)
    print(json.dumps({"serving": args.model, "url": f"http://{args.host}:{args.port}/predict"}))
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
