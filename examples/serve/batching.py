"""Requests that arrive together share a batch: one call of the model for many.

Memory is bounded: no more than `limit` images wait or run; beyond that a request is refused at
once, which a client can act upon, instead of kept until it has given up.
"""

import asyncio
from collections.abc import Callable

import numpy as np


class Busy(Exception):
    """More requests than the server can hold; come back in a moment."""


class Batcher:
    """Collects images into batches and answers each with its row of the output."""

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        *,
        max_batch: int = 32,
        delay: float = 0.002,
        limit: int = 256,
    ):
        """Prepares to batch; `start` starts it.

        Args:
          run: images [B, ...] to outputs [B, ...]; called in a thread, one call at a time.
          max_batch: most images of a call.
          delay: seconds that the first image of a batch waits for others.
          limit: most images that wait or run.
        """
        self.run, self.max_batch, self.delay, self.limit = run, max_batch, delay, limit
        self.held, self.batches = 0, 0
        self._queue: asyncio.Queue = asyncio.Queue()
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answers what waits, and ends."""
        await self._queue.put(None)
        await self._task

    async def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the output for one image.

        Raises:
          Busy: `limit` images are waiting already.
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
        end = False
        while not end:
            first = await self._queue.get()
            if first is None:
                return
            batch, end = await self._collect(first)
            waiting = [(image, answer) for image, answer in batch if not answer.cancelled()]
            if not waiting:  # all of them have hung up
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
        """Returns a batch that begins with an item, and whether the end was seen."""
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
