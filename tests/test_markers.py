"""`make check` runs the tests that need neither Ray nor a server. A test without the marker `ray` cannot start Ray."""

import subprocess
import sys

import pytest
import ray


def test_a_test_without_the_marker_cannot_start_ray(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("ray") is None
    assert not ray.is_initialized(), "a job would join what others have joined"
    with pytest.raises(pytest.fail.Exception, match="without the marker `ray` starts Ray"):
        ray.init(address="local")


def test_a_process_of_a_test_without_the_marker_cannot_start_ray() -> None:
    code = "import ray; ray.init(address='local', include_dashboard=False)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "only-tests-with-the-marker-ray" in ended.stderr


def test_a_test_that_uses_a_head_or_a_server_is_marked(request: pytest.FixtureRequest, s3: object) -> None:
    assert request.node.get_closest_marker("server")
