"""Whichever process dies at whichever moment, the same command goes on and makes the dataset of an undisturbed run."""

from pathlib import Path

import pytest

from tests.faults import DAEMON_SECONDS, LEAST, Faults
from tests.ray_processes import DAEMONS, Target

KILLS = 20


# About 150 s on two free cores. Each kill and each run has a deadline in the harness.
@pytest.mark.timeout(1200)
def test_a_run_killed_twenty_times_anywhere_gives_the_bytes_of_an_undisturbed_one(
    own_ray: None, tmp_path: Path
) -> None:
    # Its own Ray, because the harness kills daemons too.
    # The harness checks each dataset: one row per planned image, equal bytes and rows, and `gc` removes everything else.
    with Faults(tmp_path, KILLS, seed=0, format="parquet", say=print) as faults:
        summary = faults.run()
    assert summary.kills.total() >= KILLS
    for target in Target:
        assert summary.kills[target] >= (1 if target in DAEMONS else LEAST), summary
    assert max(summary.daemon_seconds.values()) < DAEMON_SECONDS
