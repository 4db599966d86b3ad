"""Ray Data without the actors that several runs of a cluster share, for an embedded Ray, where nothing is shared.

On a cluster, Ray Data's executions report to a statistics actor, which names them and feeds the dashboard, and ask a coordinator
actor which share of the cluster they may use. Every execution waits for the answers of both, and each takes seconds to start. A
third actor keeps the nodes of pool actors. An embedded Ray has one run, one node that cannot grow, and no dashboard.

Ray 2.60 has no public switch for this. As in `control/embedded.py`, names of Ray's are replaced for a while, the minor version
of Ray is pinned, and a test looks at the remaining processes.
"""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import AutoscalingCoordinator, rate_based_cluster_autoscaler
from ray.data._internal.execution.operators import actor_pool_map_operator

from da2ray.pipeline.control.embedded import replaced


class _WholeNode(AutoscalingCoordinator):
    """Grants an execution all of the node at once, whatever it requests."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

    def request_resources(self, *_: Any, **__: Any) -> None:
        pass

    def cancel_request(self) -> None:
        pass

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        return self._nodes


class _NoTracker:
    """In place of the handle to the actor that keeps the nodes of pool actors. It travels to them."""

    @property
    def update_actor_location(self) -> "_NoTracker":
        return self

    def remote(self, *_: Any) -> None:
        pass


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a report."""


@contextlib.contextmanager
def without_shared_actors() -> Iterator[None]:
    """Within this context executions of Ray Data name themselves, report nothing, and take all of an embedded Ray's node."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (rate_based_cluster_autoscaler, "DefaultAutoscalingCoordinator", _WholeNode),
            # Without an answer of the tracker, the pool takes an actor to be where it was when it started.
            (actor_pool_map_operator, "get_or_create_actor_location_tracker", _NoTracker),
            (actor_pool_map_operator, "get_actor_locations", lambda _: {}),
            (stats._StatsManager, "gen_dataset_id_from_stats_actor", staticmethod(lambda: uuid.uuid4().hex)),
            (stats._StatsManager, "register_dataset_to_stats_actor", staticmethod(_nothing)),
            (stats._StatsManager, "update_execution_metrics", staticmethod(_nothing)),
        ):
            stack.enter_context(replaced(owner, name, value))
        yield
