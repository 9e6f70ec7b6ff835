"""From a request to the webhook, through a PyTorchJob on two nodes of two ranks: everything real but the cluster."""

import hashlib
import json
from pathlib import Path

import boto3
import pytest
import yaml
from standardwebhooks import Webhook

from engine.contract.codec import decode
from functions.dispatch.launchers.kube import Kube
from tests.e2e.system import a_system
from tests.kube_api import KubeApi
from tests.kubelet import Cluster, running
from tests.make import PROMPT
from tests.servers import Sink, wait_until

SMALL = ("--width", "64", "--height", "64", "--num-frames", "9", "--steps", "4", "--seed", "7")
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def bucket(s3_address: str) -> str:
    client = boto3.Session("a", "s", region_name="us-east-1").client("s3", endpoint_url=s3_address)
    client.create_bucket(Bucket="cluster")
    return "s3://cluster/made"


def test_a_request_becomes_a_pytorchjob_on_two_nodes_a_video_in_s3_and_a_webhook(
    api: KubeApi,
    kube: Kube,
    kubeconfig: Path,
    models: Path,
    tmp_path: Path,
    s3_address: str,
    bucket: str,
    sink: Sink,
) -> None:
    overlay = tmp_path / "overlay.yaml"
    container = {"name": "pytorch", "env": [{"name": "CINEVENT_MODELS_DIR", "value": str(models)}]}
    overlay.write_text(yaml.safe_dump({"spec": {"containers": [container]}}))
    env = {
        **KEYS,
        "KUBECONFIG": str(kubeconfig),
        "CINEVENT_LAUNCHER": "pytorchjob",
        "CINEVENT_ENGINE_IMAGE": "registry.example/engine:1.0",
        "CINEVENT_RUN_OVERLAY": str(overlay),
        "CINEVENT_NUM_NODES": "2",
        "CINEVENT_STORE_URL": bucket,
        "CINEVENT_S3_ENDPOINT": s3_address,
    }
    api.has_kubelet = True
    cluster = Cluster(kube, tmp_path / "pods", secrets={"cinevent-engine": KEYS})
    with running(cluster), a_system(tmp_path / "data", models=models, processes=2, env=env) as system:
        job = system.submit(*SMALL, "--webhook", sink.url)
        state = system.await_state(job, "COMPLETED", "FAILED", timeout_s=240)
        video = tmp_path / "video.mp4"
        done = system.cinevent("video", job, "-o", str(video))
        wait_until(lambda: sink.received, what="the webhook comes")
        wait_until(lambda: "cinevent.io/active" not in str(api.of("pytorchjobs")), what="the run leaves the lists")
        secret = system.addresses["webhook_secret"]

    assert (state["state"], state["attempt"], done.code) == ("COMPLETED", 1, 0), state["error"]
    assert hashlib.sha256(video.read_bytes()).hexdigest() == state["artifacts"]["video"]["sha256"]
    [hook] = sink.received
    Webhook(secret).verify(hook.body, hook.headers)
    assert decode(hook.headers, hook.body).name == "completed"
    [run] = api.of("pytorchjobs")
    assert [kind["type"] for kind in run["status"]["conditions"]] == ["Succeeded"]
    assert json.loads(run["metadata"]["annotations"]["cinevent.io/plan"])["num_nodes"] == 2
    assert len([call for call in api.calls if str(call).startswith("POST") and call.path.endswith("pytorchjobs")]) == 1
    everything = json.dumps([call.body for call in api.calls])
    assert (PROMPT in everything, "a paper boat" in everything, "whsec_" in everything) == (False, False, False)
