"""Kills a run again and again, resumes it, and holds the dataset against the one of a run that nobody disturbed.

    python -m tests.faults --kills 200 --seed 7 --format zarr

A round is one dataset: the driver, workers of every kind, the cluster and its daemons are killed at random moments until the
round's kills are done, the last one while the finished run closes. Then the job runs to its end and the dataset is compared. The
seed decides what is killed in which order, and how long to wait for it; the moments are the machine's.
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
    AGENTS,
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
"""Kills of each target that the issue names; of a daemon alone, one."""
DAEMON_SECONDS = 120
"""Within which a driver ends whose raylet or GCS is gone."""
RUN_SECONDS = 300
"""Within which something must happen: a kill, or the end of a run."""
WORKER_SECONDS = 5
"""For which a worker of one kind is looked for before another target has its turn."""
SEAM_SECONDS = 1
"""For which a writer between a shard's data and its commit is waited for."""
KILLED = -9


@dataclass
class Summary:
    """What a harness did.

    Attributes:
        orphans, temporary: objects that no commit names, and halves of files; what `gc` removed.
        seconds: in all; `undisturbed`, for the run to compare with.
        daemon_seconds: how long the driver took at most to end after a daemon's death.
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
    """What to kill, by round: an eighth drivers, an eighth clusters, one daemon of each kind in twenty, workers else."""
    restarts = max(LEAST, kills // 8)
    daemons = max(1, kills // 20)
    ends = [Target.DRIVER, Target.CLUSTER] * restarts + [*DAEMONS] * daemons
    workers = [[*WORKERS][number % len(WORKERS)] for number in range(max(LEAST * len(WORKERS), kills - len(ends)))]
    rounds = -(-(len(ends) + len(workers)) // KILLS_A_ROUND)
    # The last one of a round waits until the run closes, and that is the driver's.
    for _ in range(rounds):
        ends.remove(Target.DRIVER)
    rest = ends + workers
    chance.shuffle(rest)
    return [[*rest[number::rounds], Target.DRIVER] for number in range(rounds)]


class Faults:
    """One harness: images, the undisturbed dataset, and the runs that are killed.

    Args:
        folder: for images and datasets.
        say: where its progress goes.
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
        """All rounds.

        Raises:
            AssertionError: a dataset differs, a run ended as it must not, or sat still.
        """
        began = time.monotonic()
        finished = run_script(*self._command(self._folder / "undisturbed"))
        assert finished.code == 0, finished
        undisturbed = open_store(str(self._folder / "undisturbed"))
        by_reason = Counter(reason.value for reason in REASONS.values() if reason)
        assert open_snapshot(undisturbed).by_reason == by_reason, "it is disturbed itself"
        self.summary.undisturbed = time.monotonic() - began
        self._tell(f"undisturbed: {self.summary.undisturbed:.0f} s")
        while self._rounds:
            queue = self._rounds.pop(0)
            output = self._folder / f"round-{self.summary.rounds}"
            self._run_round(output, queue)
            if queue:  # its runs were over before
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
        """Run the job as often as it takes to reach its end, killing what is due."""
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
            # A job on the same machine sees that the holder of the leases is dead.
            assert not (killed_before and "waiting for it" in finished.stdout), finished
            killed_before = True
            if finished.code == 0:
                return

    def _check_end(self, finished: Finished, last: Target | None) -> None:
        expected = {0, 75}  # 75: a worker was killed too often at the same shard
        if last in {Target.DRIVER, Target.CLUSTER}:
            expected = {KILLED}
        elif last in DAEMONS:
            # Ray's C++ ends a driver, with 1, whose raylet dies while it joins; then the run has not announced itself.
            expected = {70, 75} if "\nrun " in finished.stdout else {1, 70, 75}
        assert finished.code in expected, (last, finished)

    def _disturb(self, job: RunningJob, store: Store, queue: list[Target]) -> Target | None:
        """Kill until a kill ends the job, or it ends by itself; the target of the kill that did."""
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
                # None of them is at work: readers may be done long before the labelling actor is up again.
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
        """While it is at it, a few shards after the kill before; every other writer between a shard's data and its commit."""
        shards = count_commits(store) + self._chance.randint(0, 4)
        self._wait(job, lambda: count_commits(store) >= min(shards, SHARDS - 1))
        self._pause(job, 0.3)
        old = uncommitted(store)
        began = time.monotonic()
        # Milliseconds long, so not every time it is caught.
        seam_until = began + (SEAM_SECONDS if target is Target.WRITER and self._chance.random() < 0.5 else 0)

        def is_due(process: psutil.Process) -> bool:
            at_seam = time.monotonic() < seam_until
            return title_of(process).startswith(WORKERS[target]) and not (at_seam and uncommitted(store) <= old)

        while job.running and time.monotonic() < began + WORKER_SECONDS:
            found = processes.find(target)
            if found and is_due(found):
                if time.monotonic() > seam_until:
                    time.sleep(self._chance.uniform(0, 0.03))
                if kill_while(found, is_due):
                    return True
            time.sleep(0.002)
        return False

    def _kill_run(self, job: RunningJob, store: Store, processes: JobProcesses, target: Target, before: int) -> bool:
        """At a random moment: a third while the run starts, the others after a few shards."""
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
        """The driver, when all is committed: it shuts Ray down and writes the snapshot."""
        self._wait(job, lambda: count_commits(store) == SHARDS)
        self._pause(job, 1)
        return self._kill_now(job, processes, Target.DRIVER)

    def _kill_now(self, job: RunningJob, processes: JobProcesses, target: Target) -> bool:
        if not job.running:
            return False
        processes.below()
        if target is Target.CLUSTER:
            return processes.has_cluster() and processes.kill_all() > 1
        found = processes.driver if target is Target.DRIVER else processes.find(target)
        return found is not None and kill_while(found, lambda _: True)

    def _wait_for_driver(self, job: RunningJob, target: Target) -> None:
        """A driver without its cluster ends by itself."""
        began = time.monotonic()
        while job.running:
            waited = time.monotonic() - began
            assert waited < DAEMON_SECONDS, f"the driver sits still {waited:.0f} s after {target} was killed"
            time.sleep(0.1)
        longest = self.summary.daemon_seconds.get(target, 0)
        self.summary.daemon_seconds[target] = max(longest, time.monotonic() - began)

    def _leave_behind(self, processes: JobProcesses) -> None:
        """Every other time the next run starts while the old cluster is still at work."""
        below = [process for process in processes.below() if is_alive(process)]
        self._leftovers += below
        if self._chance.random() < 0.5:
            wait_gone([process for process in below if not title_of(process).startswith(AGENTS)])

    def _pause(self, job: RunningJob, most: float) -> None:
        ends = time.monotonic() + self._chance.uniform(0, most)
        self._wait(job, lambda: time.monotonic() >= ends)

    def _wait(self, job: RunningJob, condition: Callable[[], bool]) -> None:
        """Until it holds or the job has ended."""
        deadline = time.monotonic() + RUN_SECONDS
        while job.running and not condition():
            assert time.monotonic() < deadline, f"nothing happens for {RUN_SECONDS} s"
            time.sleep(0.02)

    # ----------------------------------------------------------------------------------------------------- checking

    def _check(self, store: Store, undisturbed: Store) -> None:
        """Bytes and rows of the undisturbed dataset, and nothing else but what `gc` removes."""
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
    """IMAGES files: crops, and between them the photographs and broken files of REASONS."""
    photos = write_photos(folder.parent / "photos")
    write_crops(folder, IMAGES - len(REASONS))
    for number, name in enumerate(REASONS):
        (photos / name).rename(folder / f"{number * IMAGES // len(REASONS):04d}-{name}")
    return folder


def assert_same(store: Store, expected: Store, images: Path) -> None:
    """Every image once, with the row and the bytes that it has in `expected`; only names of objects hold random attempt ids."""
    (plan,) = list_plans(store)
    assert sorted(entry.shard for entry in list_commits(store, plan.id)) == list(range(SHARDS))
    found, wanted = commits_of(store), commits_of(expected)
    for shard, commit in wanted.items():
        assert store.get(found[shard].object) == expected.get(commit.object), f"shard {shard}"
    index, other = (da2ray.open_labels(each.url).index for each in (store, expected))
    assert index["key"].to_pylist() == sorted(path.name for path in images.iterdir())
    # Fixed: libraries, instruction set, and the labelling actor's threads, which are its share of the machine's cores.
    assert index.drop_columns("object").equals(other.drop_columns("object"))


def uncommitted(store: Store) -> set[str]:
    """Objects of shards that have no commit yet."""
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
