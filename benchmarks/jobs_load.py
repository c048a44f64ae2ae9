"""How long the job store takes with many jobs and many watchers. Prints one line for each figure.

Run: python benchmarks/jobs_load.py (about a minute; writes to a temporary folder only)
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable

from pixeldance.jobs import JobService, JobStore
from pixeldance.jobs.job import Phase
from pixeldance.jobs.live import BoardWriter, Note

NUM_JOBS = 1000
NUM_WATCHERS = 50
NUM_STEPS = 100


def median_ms(call: Callable[[], object], repeats: int = 9) -> float:
    """Median time of a call, in ms."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000.0


def report(what: str, milliseconds: float) -> None:
    """Print a figure."""
    print(f"{what:<46} {milliseconds:8.2f} ms")  # noqa: T201


def main() -> None:
    """Measure a queue of 1,000 jobs, then a running job with 50 watchers."""
    with tempfile.TemporaryDirectory() as folder, JobService(JobStore(folder)) as service:
        start = time.perf_counter()
        jobs = [service.add({"prompt": f"a fox that jumps {i} times"}) for i in range(NUM_JOBS)]
        report("add a job", (time.perf_counter() - start) / NUM_JOBS * 1000.0)
        report(f"list {NUM_JOBS} queued jobs", median_ms(lambda: service.list(limit=1000)))
        report("list a page of 50", median_ms(lambda: service.list(limit=50)))
        report("search", median_ms(lambda: service.list(search="fox that jumps 99", limit=50)))
        report("move a job to the middle", median_ms(lambda: service.move(jobs[0].id, 500)))
        watch(service)


def watch(service: JobService) -> None:
    """What a worker's note costs with nobody watching and with 50 watchers of one job."""
    job = service.store.running.claim()
    assert job is not None, "there are queued jobs"
    note = Note(job.id, 1, 1, Phase.DENOISING, 0, NUM_STEPS, 1, 1, 0.1, 1.0, None, None)
    with BoardWriter(service.store.folder.live) as board:
        numbers = iter(range(2, 10**6))

        def write() -> None:
            board.write(note._replace(number=next(numbers)))
            time.sleep(0.01)

        report("a step is told, nobody watches (10 of it sleep)", median_ms(write, NUM_STEPS))
        watchers = [
            threading.Thread(target=lambda: list(service.events(job.id)))
            for _ in range(NUM_WATCHERS)
        ]
        for watcher in watchers:
            watcher.start()
        report(f"the same with {NUM_WATCHERS} watchers", median_ms(write, NUM_STEPS))
        service.stop(job.id)
        service.store.running.give_back(job.id)
        for watcher in watchers:
            watcher.join()


if __name__ == "__main__":
    main()
