"""Whatever dies at whatever moment: the same command goes on, and the dataset is that of a run that nobody disturbed."""

from pathlib import Path

import pytest

from tests.faults import DAEMON_SECONDS, LEAST, Faults
from tests.ray_processes import DAEMONS, Target

KILLS = 20


# Some 150 s on two cores of one's own; each kill and each run has a deadline in the harness.
@pytest.mark.timeout(1200)
def test_a_run_killed_twenty_times_anywhere_gives_the_bytes_of_an_undisturbed_one(
    own_ray: None, tmp_path: Path
) -> None:
    # Its own Ray: its daemons are killed too.
    # It asserts after each dataset: every planned image has one row, all bytes and rows are equal, and `gc` removes the rest.
    with Faults(tmp_path, KILLS, seed=0, format="parquet", say=print) as faults:
        summary = faults.run()
    assert summary.kills.total() >= KILLS
    for target in Target:
        assert summary.kills[target] >= (1 if target in DAEMONS else LEAST), summary
    assert max(summary.daemon_seconds.values()) < DAEMON_SECONDS
