"""Makes worker processes end when the process that started them ends."""

import multiprocessing
import os
import threading


def end_with_parent(*_: object) -> None:
    """Starts a thread in this worker process that ends the process when its parent ends.

    Without it, workers survive a parent that is killed, which cannot stop them. Process pools and
    Grain call this function in each new worker; their arguments are ignored.
    """

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # only the main process, which is no worker, has none
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
