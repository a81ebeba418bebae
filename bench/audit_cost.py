"""What an audit costs of the job that it looks at: `python -m bench.audit_cost [--jobs 12]`.

Stories of several canvases are made one at a time, as for a client that is alone. Then one canvas
of each, drawn at random, is replayed and is audited by a forced pass. Every time is the process's
CPU time over that of the whole job, so other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import torch

from bench.audit_measure import BFLOAT16, FLOAT32, Models, key
from bench.audit_workers import Numerics, ServedCanvas, ask, serve
from bench.report import environment, percentile

PAIRS: Final = ((FLOAT32, FLOAT32), (BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16))
"""Worker and auditor. A CPU without instructions for bfloat16 chooses float32."""
GOAL: Final = 0.10
LEAST_CANVASES: Final = 2


def cpu_s(work: Callable[[], Any]) -> float:
    """How much CPU time some work takes, in seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def audited(models: Models, worker: Numerics, auditor: Numerics, jobs: int) -> dict[str, Any]:
    """Make jobs, audit a canvas of each, and return what share of its job each audit takes."""
    loaded, draw = models.of(worker), random.Random(1)  # noqa: S311  a workload, no secret
    forced: list[float] = []
    replayed: list[float] = []
    job_times: list[float] = []
    canvases: list[int] = []
    steps: list[int] = []
    number = 0
    while len(forced) < jobs:
        request, number = ask(models.of(BFLOAT16), number), number + 1
        if request.reads:
            continue
        shown: list[ServedCanvas] = []
        job_s = cpu_s(lambda: shown.extend(serve(loaded, [request])))  # noqa: B023  called at once
        if len(shown) < LEAST_CANVASES:
            continue
        one = draw.choice(shown)
        opened, claimed = one.opened(models.of(auditor).limits), one.request
        count = len(one.records)
        work = cpu_s(lambda: models.forced(auditor).figures(claimed, opened))  # noqa: B023
        job_times.append(job_s)
        forced.append(work / job_s)
        work = cpu_s(lambda: models.replayer(worker).replay(claimed, steps=count))  # noqa: B023
        replayed.append(work / job_s)
        canvases.append(len(shown))
        steps.append(count)
    return {
        "worker": key(worker),
        "auditor": key(auditor),
        "jobs": jobs,
        "canvases_median": statistics.median(canvases),
        "steps_median": statistics.median(steps),
        "forced": shares(forced, job_times),
        "replay": shares(replayed, job_times),
        "goal": GOAL,
    }


def shares(found: list[float], job_times: list[float]) -> dict[str, float]:
    """Least, median, nine of ten, and most of the shares, and that of all audits in all jobs."""
    work = sum(share * job_s for share, job_s in zip(found, job_times, strict=True))
    middle, high = statistics.median(found), percentile(found, 0.9)
    figures = (min(found), middle, high, max(found), work / sum(job_times))
    names = ("least", "median", "p90", "most", "of_all")
    return {name: round(share, 4) for name, share in zip(names, figures, strict=True)}


def main() -> None:
    """Print a JSON object with a row for each pair of worker and auditor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=12)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    models = Models("cpu", None, None)
    for pair in PAIRS:  # what is compiled or laid out once is no cost of an audit
        audited(models, *pair, jobs=1)
    rows = [audited(models, *pair, jobs=wanted.jobs) for pair in PAIRS]
    print(json.dumps({"environment": environment("torch"), "audits": rows}, indent=1))


if __name__ == "__main__":
    main()
