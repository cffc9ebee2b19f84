"""Worker processes that do not outlive the process that started them."""

import multiprocessing
import os
import threading


def end_with_parent(*_) -> None:
    """Ends this process, from now on, when its parent ends: one that is killed cannot tell it to.

    For pools and Grain to call in a new worker, with whatever arguments they have.
    """

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
