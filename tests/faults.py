"""Kill a run again and again, resume it, and compare its dataset with that of an undisturbed run.

    python -m tests.faults --kills 200 --seed 7 --format zarr

Each round makes one dataset. The harness kills the driver, workers of every kind, the cluster and its daemons at random moments,
until the round's kills are done; the last one comes while the finished run closes. Then the job runs to its end and the harness
compares the dataset. The seed decides the targets, their order and the waits; the moments still depend on the machine.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self

import psutil

import da2ray
from da2ray.labels.commits import list_commits
from da2ray.labels.snapshots import list_snapshots, open_snapshot
from da2ray.labels.upkeep.garbage import collect
from da2ray.labels.upkeep.verify import verify
from da2ray.plan.plan import list_plans
from da2ray.storage import Store, open_store
from tests.jobs import Finished, RunningJob, commits_of, count_commits, run_script, shard_objects
from tests.photos import REASONS, write_crops, write_photos
from tests.ray_processes import (
    DAEMONS,
    WORKERS,
    JobProcesses,
    Target,
    is_alive,
    kill_while,
    title_of,
    wait_gone,
)

SHARD_SIZE = 4
SHARDS = 120
IMAGES = SHARDS * SHARD_SIZE
KILLS_A_ROUND = 25
LEAST = 3
"""Least number of kills of each target. A daemon alone is killed at least once."""
DAEMON_SECONDS = 120
"""Time within which a driver must end after its raylet or GCS died."""
RUN_SECONDS = 300
"""Time within which something must happen: a kill, or the end of a run."""
WORKER_SECONDS = 5
"""Time for which the harness looks for a worker of one kind before it takes another target."""
SEAM_SECONDS = 1
"""Time for which the harness waits for a writer that is between a shard's data and its commit."""
KILLED = -9


@dataclass
class Summary:
    """The counts and times of a harness.

    Attributes:
        orphans, temporary: objects that no commit names, and unfinished files; `gc` removed both.
        seconds: total time.
        undisturbed: seconds that the undisturbed run took.
        daemon_seconds: longest time that a driver took to end after a daemon died.
    """

    kills: Counter[Target] = field(default_factory=Counter)
    runs: int = 0
    rounds: int = 0
    orphans: int = 0
    temporary: int = 0
    seconds: float = 0.0
    undisturbed: float = 0.0
    daemon_seconds: dict[Target, float] = field(default_factory=dict)

    def table(self) -> str:
        lines = [f"{target:<16}{self.kills[target]:>5}" for target in Target]
        lines += [f"{'kills':<16}{self.kills.total():>5}", f"{'restarts':<16}{self.runs - self.rounds:>5}"]
        lines += [f"{'datasets':<16}{self.rounds:>5}", f"{'orphans':<16}{self.orphans:>5}"]
        lines += [f"{'temporary files':<16}{self.temporary:>5}", f"{'seconds':<16}{self.seconds:>5.0f}"]
        lines += [f"driver ended {seconds:.0f} s after {target}" for target, seconds in self.daemon_seconds.items()]
        return "\n".join(lines)


def schedule(kills: int, chance: random.Random) -> list[list[Target]]:
    """The targets of each round: an eighth drivers, an eighth clusters, one daemon of each kind in twenty kills, else workers."""
    restarts = max(LEAST, kills // 8)
    daemons = max(1, kills // 20)
    ends = [Target.DRIVER, Target.CLUSTER] * restarts + [*DAEMONS] * daemons
    workers = [[*WORKERS][number % len(WORKERS)] for number in range(max(LEAST * len(WORKERS), kills - len(ends)))]
    rounds = -(-(len(ends) + len(workers)) // KILLS_A_ROUND)
    # The last kill of a round hits the driver while the run closes.
    for _ in range(rounds):
        ends.remove(Target.DRIVER)
    rest = ends + workers
    chance.shuffle(rest)
    return [[*rest[number::rounds], Target.DRIVER] for number in range(rounds)]


class Faults:
    """A harness: its images, the undisturbed dataset, and the runs that it kills.

    Args:
        folder: where images and datasets go.
        say: prints a line of progress.
    """

    def __init__(self, folder: Path, kills: int, seed: int, format: str, say: Callable[[str], None]) -> None:  # noqa: A002
        self.summary = Summary()
        self._folder = folder
        self._images = write_images(folder / "images")
        self._chance = random.Random(seed)  # noqa: S311 - not for secrets
        self._rounds = schedule(kills, self._chance)
        self._format = format
        self._say = say
        self._began = time.monotonic()
        self._leftovers: list[psutil.Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._leftovers:
            if is_alive(process):
                process.kill()

    def run(self) -> Summary:
        """Run all rounds.

        Raises:
            AssertionError: a dataset differs, or a run hung or ended with an unexpected exit code.
        """
        began = time.monotonic()
        finished = run_script(*self._command(self._folder / "undisturbed"))
        assert finished.code == 0, finished
        undisturbed = open_store(str(self._folder / "undisturbed"))
        by_reason = Counter(reason.value for reason in REASONS.values() if reason)
        assert open_snapshot(undisturbed).by_reason == by_reason, "the undisturbed run lost or failed samples"
        self.summary.undisturbed = time.monotonic() - began
        self._tell(f"undisturbed: {self.summary.undisturbed:.0f} s")
        while self._rounds:
            queue = self._rounds.pop(0)
            output = self._folder / f"round-{self.summary.rounds}"
            self._run_round(output, queue)
            if queue:  # the runs ended before all kills were done
                self._rounds.insert(0, queue)
            self._check(open_store(str(output)), undisturbed)
            shutil.rmtree(output)
        self.summary.seconds = time.monotonic() - self._began
        return self.summary

    def _command(self, output: Path) -> list[object]:
        return [
            *("--images", self._images, "--output", output, "--teacher", "luminance", "--format", self._format),
            *("--shard-size", SHARD_SIZE, "--batch-size", SHARD_SIZE),
        ]

    def _tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.1f} s  {text}")

    # ------------------------------------------------------------------------------------------------------ killing

    def _run_round(self, output: Path, queue: list[Target]) -> None:
        """Run the job until it reaches its end, and kill the targets in the queue meanwhile."""
        store = open_store(str(output))
        self.summary.rounds += 1
        killed_before = False
        while True:
            self.summary.runs += 1
            job = RunningJob(*self._command(output))
            try:
                last = self._disturb(job, store, queue)
                finished = job.wait(RUN_SECONDS)
            except AssertionError as error:
                job.kill()
                raise AssertionError(f"{error}: {job.wait()}") from None
            except BaseException:
                job.kill()
                raise
            self._tell(f"run {self.summary.runs} ended with {finished.code}, {count_commits(store)}/{SHARDS} shards")
            self._check_end(finished, last)
            # A job on the same machine sees that the holder of the leases is dead, so it does not wait.
            assert not (killed_before and "waiting for it" in finished.stdout), finished
            killed_before = True
            if finished.code == 0:
                return

    def _check_end(self, finished: Finished, last: Target | None) -> None:
        expected = {0, 75}  # 75: a worker was killed too often at the same shard
        if last in {Target.DRIVER, Target.CLUSTER}:
            expected = {KILLED}
        elif last in DAEMONS:
            # If the raylet dies while the driver joins, or in the moments after, Ray's core may end the driver with 1 before
            # the driver notices: then the line "run …" is missing, or is the last.
            begun = finished.stdout.rpartition("\n")[0].rpartition("\n")[2]
            expected = {70, 75} if "\nrun " in finished.stdout and not begun.startswith("run ") else {1, 70, 75}
        assert finished.code in expected, (last, finished)

    def _disturb(self, job: RunningJob, store: Store, queue: list[Target]) -> Target | None:
        """Kill targets until the job ends. Return the target whose death ended it, or None if it ended by itself."""
        processes = JobProcesses(job.pid)
        before = count_commits(store)
        while queue and job.running:
            target = queue[0]
            if target in WORKERS:
                killed = self._kill_worker(job, store, processes, target)
            elif len(queue) == 1:
                killed = self._kill_closing(job, store, processes)
            else:
                killed = self._kill_run(job, store, processes, target, before)
            if not killed:
                # No such worker is busy: readers may be done long before the labelling actor is up again.
                queue.insert(max(1, len(queue) - 1), target)
                queue.pop(0)
                continue
            queue.pop(0)
            self.summary.kills[target] += 1
            self._tell(f"killed {target}, {count_commits(store)}/{SHARDS} shards")
            if target in WORKERS:
                continue
            if target in DAEMONS:
                self._wait_for_driver(job, target)
            elif target is Target.DRIVER:
                self._leave_behind(processes)
            return target
        return None

    def _kill_worker(self, job: RunningJob, store: Store, processes: JobProcesses, target: Target) -> bool:
        """Kill a busy worker, a few shards after the last kill. Every other writer dies between a shard's data and its commit."""
        shards = count_commits(store) + self._chance.randint(0, 4)
        self._wait(job, lambda: count_commits(store) >= min(shards, SHARDS - 1))
        self._pause(job, 0.3)
        old = uncommitted(store)
        began = time.monotonic()
        # That moment lasts milliseconds, so the harness does not always catch it.
        seam_until = began + (SEAM_SECONDS if target is Target.WRITER and self._chance.random() < 0.5 else 0)

        def is_due(process: psutil.Process) -> bool:
            at_seam = time.monotonic() < seam_until
            return title_of(process).startswith(WORKERS[target]) and not (at_seam and uncommitted(store) <= old)

        while job.running and time.monotonic() < began + WORKER_SECONDS:
            worker = processes.find(target)
            if worker and is_due(worker):
                if time.monotonic() > seam_until:
                    time.sleep(self._chance.uniform(0, 0.03))
                if kill_while(worker, is_due):
                    return True
            time.sleep(0.002)
        return False

    def _kill_run(self, job: RunningJob, store: Store, processes: JobProcesses, target: Target, before: int) -> bool:
        """Kill the target at a random moment: a third of the time while the run starts, else after a few shards."""
        if target is not Target.DRIVER:
            self._wait(job, processes.has_cluster)
        if self._chance.random() < 1 / 3:
            self._pause(job, 6)
        else:
            shards = before + self._chance.randint(1, 12)
            self._wait(job, lambda: count_commits(store) >= shards)
            self._pause(job, 0.5)
        return self._kill_now(job, processes, target)

    def _kill_closing(self, job: RunningJob, store: Store, processes: JobProcesses) -> bool:
        """Kill the driver after the last commit, while it shuts Ray down and writes the snapshot."""
        self._wait(job, lambda: count_commits(store) == SHARDS)
        self._pause(job, 1)
        return self._kill_now(job, processes, Target.DRIVER)

    def _kill_now(self, job: RunningJob, processes: JobProcesses, target: Target) -> bool:
        if not job.running:
            return False
        processes.below()
        if target is Target.CLUSTER:
            return processes.has_cluster() and processes.kill_all() > 1
        process = processes.driver if target is Target.DRIVER else processes.find(target)
        return process is not None and kill_while(process, lambda _: True)

    def _wait_for_driver(self, job: RunningJob, target: Target) -> None:
        """Wait until the driver ends by itself, as it must without its cluster."""
        began = time.monotonic()
        while job.running:
            waited = time.monotonic() - began
            assert waited < DAEMON_SECONDS, f"the driver still runs {waited:.0f} s after the kill of {target}"
            time.sleep(0.1)
        longest = self.summary.daemon_seconds.get(target, 0)
        self.summary.daemon_seconds[target] = max(longest, time.monotonic() - began)

    def _leave_behind(self, processes: JobProcesses) -> None:
        """Wait for the end of the old cluster, or, every other time, let the next run start while it still works."""
        below = [process for process in processes.below() if is_alive(process)]
        self._leftovers += below
        if self._chance.random() < 0.5:
            wait_gone(below)

    def _pause(self, job: RunningJob, most: float) -> None:
        ends = time.monotonic() + self._chance.uniform(0, most)
        self._wait(job, lambda: time.monotonic() >= ends)

    def _wait(self, job: RunningJob, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds or the job ends."""
        deadline = time.monotonic() + RUN_SECONDS
        while job.running and not condition():
            assert time.monotonic() < deadline, f"nothing happens for {RUN_SECONDS} s"
            time.sleep(0.02)

    # ----------------------------------------------------------------------------------------------------- checking

    def _check(self, store: Store, undisturbed: Store) -> None:
        """Check that bytes and rows equal those of the undisturbed dataset, and that `gc` removes everything else."""
        committed = {commit.object for commit in commits_of(store).values()}
        orphans = shard_objects(store) - committed
        self.summary.orphans += len(orphans)
        self.summary.temporary += len(temporary_files(store))
        collect(store, timedelta(0), dry_run=False)
        assert shard_objects(store) == committed
        assert temporary_files(store) == []
        assert list_snapshots(store) == [1]
        parts = {part.key for part in open_snapshot(store).parts}
        assert {key for batch in store.list("index") for key in batch["key"].to_pylist()} == parts
        assert verify(store, self._format).findings == []
        assert_same(store, undisturbed, self._images)
        self._tell(f"the dataset is that of the undisturbed run; {len(orphans)} orphans were removed")


def write_images(folder: Path) -> Path:
    """Write IMAGES files: crops, and between them the photographs and broken files of REASONS."""
    photos = write_photos(folder.parent / "photos")
    write_crops(folder, IMAGES - len(REASONS))
    for number, name in enumerate(REASONS):
        (photos / name).rename(folder / f"{number * IMAGES // len(REASONS):04d}-{name}")
    return folder


def assert_same(store: Store, expected: Store, images: Path) -> None:
    """Check that every image has its row and bytes of `expected`, once. Only the random names of objects may differ."""
    (plan,) = list_plans(store)
    assert sorted(entry.shard for entry in list_commits(store, plan.id)) == list(range(SHARDS))
    commits, wanted = commits_of(store), commits_of(expected)
    for shard, commit in wanted.items():
        assert store.get(commits[shard].object) == expected.get(commit.object), f"shard {shard}"
    index, other = (da2ray.open_labels(each.url).index for each in (store, expected))
    assert index["key"].to_pylist() == sorted(path.name for path in images.iterdir())
    # Fixed: libraries, instruction set, and the labelling actor's threads (its share of the machine's cores).
    assert index.drop_columns("object").equals(other.drop_columns("object"))


def uncommitted(store: Store) -> set[str]:
    """The objects of shards that have no commit yet."""
    commits = {
        key.rpartition("/")[2].partition(".")[0] for batch in store.list("commits") for key in batch["key"].to_pylist()
    }
    return {key for key in shard_objects(store) if key.rpartition("/")[2].partition("-")[0] not in commits}


def temporary_files(store: Store) -> list[Path]:
    return sorted(Path(store.url).rglob(".da2ray-tmp-*"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Kill a run, resume it, and compare its dataset with an undisturbed one."
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=["parquet", "zarr"], default="parquet")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="da2ray-faults-"))
    with Faults(folder, options.kills, options.seed, options.format, lambda text: print(text, flush=True)) as faults:
        print(faults.run().table())
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
