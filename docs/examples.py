"""The example that the documents tell: one job from its request to each way in which it may end."""

from typing import Any

from engine.contract.job import artifact_key, run_name
from engine.contract.models import CATALOG
from engine.contract.plan import choose
from engine.contract.request import parse

TENANT = "default"
JOB = "jmfzwc43bnrswe33omfrgczdfm"
REQUEST: dict[str, Any] = {
    "model": "wan2.2-t2v-a14b",
    "input": {
        "prompt": "a cat walks on the beach at sunset",
        "negative_prompt": "text, watermark",
        "width": 1280,
        "height": 720,
        "num_frames": 81,
        "fps": 16,
        "steps": 40,
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
        "flow_shift": 12.0,
        "seed": 42,
        "crf": 18,
    },
    "priority": "normal",
    "max_attempts": 3,
    "deadline_s": 21600,
    "webhook": {"url": "https://example.com/hook", "events": ["completed", "failed"]},
    "metadata": {"order": "7"},
}


def _artifact(name: str, content_type: str, size_bytes: int, **facts: float) -> dict[str, Any]:
    return {
        "key": artifact_key(TENANT, JOB, 1, name),
        "content_type": content_type,
        "size_bytes": size_bytes,
        "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        **facts,
    }


EXAMPLES: dict[str, dict[str, Any]] = {
    "requested": {"request": parse(REQUEST, job=JOB).to_json()},
    "launched": {
        "attempt": 1,
        "launcher": "local",
        "run": run_name(JOB, 1),
        "plan": choose(
            CATALOG["wan2.2-t2v-a14b"], num_nodes=1, num_processes=8, width=1280, height=720, num_frames=81
        ).to_json(),
    },
    "waiting": {
        "attempt": 1,
        "reason": "unschedulable",
        "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
    },
    "started": {"attempt": 1, "world_size": 8},
    "progress": {
        "attempt": 1,
        "stage": "denoising",
        "step": 10,
        "steps": 40,
        "percent": 31.75,
        "eta_s": 218.4,
        "seconds_per_step": 6.0,
        "peak_memory_bytes": 61_203_283_968,
        "preview": {"key": artifact_key(TENANT, JOB, 1, "preview.jpg"), "step": 10, "size_bytes": 9_402},
    },
    "drained": {"attempt": 1, "drains": 1},
    "retrying": {
        "attempt": 2,
        "error": {"code": "engine_crashed", "message": "the run ended with 137", "log_tail": "Killed"},
    },
    "cancel": {},
    "completed": {
        "attempt": 1,
        "artifacts": {
            "video": _artifact(
                "video.mp4", "video/mp4", 4_718_592, width=1280, height=720, num_frames=81, fps=16, duration_s=5.0625
            ),
            "poster": _artifact("poster.jpg", "image/jpeg", 91_204),
            "manifest": _artifact("manifest.json", "application/json", 2_310),
        },
        "timings": {"loading": 61.2, "encoding_text": 1.4, "denoising": 240.0, "decoding": 12.5},
    },
    "failed": {
        "attempt": 3,
        "error": {"code": "stalled", "message": "the run showed no new stage or step for 900 s and was ended"},
    },
    "cancelled": {"attempt": 1},
}
"""Data of each event, without the job and the tenant."""
