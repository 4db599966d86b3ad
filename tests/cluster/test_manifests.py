"""The manifests parse, KubeRay knows their fields, and the job accepts the command in them."""

import shlex
from pathlib import Path

import yaml

from da2ray.commands.options import load
from da2ray.commands.pseudolabel import PseudolabelConfig

CLUSTER = Path(__file__).parents[2] / "cluster"

JOB_FIELDS = {
    *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "runtimeEnvYAML"),
    *("rayClusterSpec", "submissionMode", "activeDeadlineSeconds", "suspend", "entrypointNumCpus"),
}
CLUSTER_FIELDS = {"enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs", "rayVersion"}
GROUP_FIELDS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    *("idleTimeoutSeconds", "priority", "labels", "resources"),
}
"""Fields of ray.io/v1 at ray-project/kuberay@feeaf72fa (ray-operator/apis/ray/v1)."""


def test_the_rayjob_has_fields_that_kuberay_knows_and_starts_the_job() -> None:
    manifest = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert len(manifest["metadata"]["name"]) <= 47  # KubeRay appends to it
    spec = manifest["spec"]
    assert set(spec) <= JOB_FIELDS
    cluster = spec["rayClusterSpec"]
    assert set(cluster) <= CLUSTER_FIELDS
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group) <= GROUP_FIELDS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group["template"]["spec"]["containers"][0]["image"]
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"], str)

    python, script, *options = shlex.split(spec["entrypoint"])
    assert (python, script) == ("python", "jobs/pseudolabel.py")
    config = load(PseudolabelConfig, options)
    assert config.device == "cuda"


def test_a_worker_outlives_the_time_that_a_stopped_job_takes() -> None:
    spec = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]
    wait = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    assert all(group["template"]["spec"]["terminationGracePeriodSeconds"] > wait for group in groups)
