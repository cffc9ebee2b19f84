"""Dynamic batching: requests that arrive at about the same time share one call of the model.

Memory is bounded: at most `limit` images wait or are computed.  Further requests are rejected at
once, so that a client can react, instead of waiting until the client gives up.
"""

import asyncio
from collections.abc import Callable

import numpy as np


class Busy(Exception):
    """The server holds as many requests as it can; the client should retry in a moment."""


class Batcher:
    """Collects images into batches; calling it with an image returns the image's output."""

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        *,
        max_batch: int = 32,
        delay: float = 0.002,
        limit: int = 256,
    ):
        """Creates a batcher; `start` starts it.

        Args:
          run: maps images [B, ...] to outputs [B, ...]; called in a thread, one call at a time.
          max_batch: largest number of images in a call.
          delay: seconds that the first image of a batch waits for others.
          limit: largest number of images that wait or are computed.
        """
        self.run, self.max_batch, self.delay, self.limit = run, max_batch, delay, limit
        self.held, self.batches = 0, 0
        self._queue: asyncio.Queue = asyncio.Queue()
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        """Starts to process images; requires a running event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Processes the images that are waiting, then stops."""
        await self._queue.put(None)
        await self._task

    async def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the output for one image.

        Raises:
          Busy: `limit` images already wait or are computed.
        """
        if self.held >= self.limit:
            raise Busy
        self.held += 1
        try:
            answer = asyncio.get_running_loop().create_future()
            self._queue.put_nowait((image, answer))
            return await answer
        finally:
            self.held -= 1

    async def _work(self) -> None:
        """Processes batches until `stop`."""
        end = False
        while not end:
            first = await self._queue.get()
            if first is None:
                return
            batch, end = await self._collect(first)
            waiting = [(image, answer) for image, answer in batch if not answer.cancelled()]
            if not waiting:  # all clients have disconnected
                continue
            images = np.stack([image for image, _ in waiting])
            try:
                outputs = await asyncio.to_thread(self.run, images)
            except Exception as error:
                outputs = [error] * len(waiting)
            self.batches += 1
            for (_, answer), output in zip(waiting, outputs, strict=True):
                if answer.done():
                    continue
                if isinstance(output, Exception):
                    answer.set_exception(output)
                else:
                    answer.set_result(output)

    async def _collect(self, first: tuple) -> tuple[list[tuple], bool]:
        """Returns a batch that starts with `first`, and whether `stop` was called."""
        loop = asyncio.get_running_loop()
        batch, deadline = [first], loop.time() + self.delay
        while len(batch) < self.max_batch:
            try:
                remaining = max(0.0, deadline - loop.time())
                item = await asyncio.wait_for(self._queue.get(), remaining)
            except TimeoutError:
                break
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False
