"""Runs one contender of `compare.py` in a process of its own, on command.

    PYTHON benchmarks/worker.py CONTENDER '{"mode": "train", "batch": 16, ...}'

Commands on standard input and answers on standard output are JSON, one object per line.  After
setup it writes {"versions", "device", "parameters", "setup_seconds", "compile_seconds",
"step_seconds", "batches"}.  The command {"run": n} makes n steps and answers {"seconds"};
{"latencies": n} answers the seconds of n steps, each waited for; {"logits": PATH} writes them and
answers {"written"}; {"machine": true} answers the result of `Contender.machine`; {"finish": true}
answers {"peak_bytes", "temporary_bytes"} and ends the process.
Output of libraries goes to standard error.
"""

import importlib.metadata
import json
import os
import pathlib
import resource
import sys
import time
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from contenders import CONTENDERS  # noqa: E402


def forget_peak() -> None:
    """Resets the process's peak memory, so that it does not include compilation."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident_peak() -> int:
    """Returns the process's peak memory since `forget_peak`, in bytes."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    # Libraries print to standard output, which must have only answers: it becomes standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, options = sys.argv[1], json.loads(sys.argv[2])
    packages, build = CONTENDERS[name]
    begin = time.perf_counter()
    contender = build(options)
    built = time.perf_counter()
    contender.compile()
    contender.step()
    contender.wait()
    compiled = time.perf_counter()
    contender.step()
    contender.wait()
    stepped = time.perf_counter()
    forget_peak()

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    answer(
        versions={package: importlib.metadata.version(package) for package in packages},
        device=contender.device,
        parameters=contender.parameters,
        setup_seconds=built - begin,
        compile_seconds=compiled - built - (stepped - compiled),
        step_seconds=stepped - compiled,
        batches=contender.batches,
    )
    for line in sys.stdin:
        command = json.loads(line)
        if "run" in command:
            for _ in range(options["warm_up"]):
                contender.step()
            contender.wait()
            start = time.perf_counter()
            for _ in range(command["run"]):
                contender.step()
            contender.wait()
            answer(seconds=time.perf_counter() - start)
            contender.release()
        elif "latencies" in command:
            seconds = []
            for _ in range(command["latencies"]):
                start = time.perf_counter()
                contender.step()
                contender.wait()
                seconds.append(time.perf_counter() - start)
            answer(latencies=seconds)
        elif "logits" in command:
            if contender.logits is not None:
                np.save(command["logits"], contender.logits())
            answer(written=contender.logits is not None)
        elif "machine" in command:
            answer(**contender.machine())
            forget_peak()
        else:
            peak = contender.peak_bytes or resident_peak
            answer(peak_bytes=peak(), temporary_bytes=contender.temporary_bytes())
            return


if __name__ == "__main__":
    main()
