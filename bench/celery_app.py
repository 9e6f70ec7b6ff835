"""What one would write without Cinevent: a Celery task that signs, posts with requests and records in Redis.

Only for bench/notify_rate.py, which starts a worker of it; acknowledged late, so that a killed worker loses nothing.
"""

import json
import os
import time
from functools import cache

import redis
import requests
from celery import Celery
from standardwebhooks import Webhook

app = Celery("bench", broker=os.environ["BENCH_REDIS"])
app.conf.update(task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=4)


@cache
def clients() -> tuple[requests.Session, redis.Redis, Webhook]:
    """Made after the fork, once per process or for all threads of one."""
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=100))
    return session, redis.Redis.from_url(os.environ["BENCH_REDIS"]), Webhook(os.environ["BENCH_SECRET"])


@app.task(bind=True, max_retries=12)
def deliver(self, url: str, name: str, body: str) -> None:
    """One attempt, and the next one in five seconds if it failed."""
    from datetime import UTC, datetime

    session, store, webhook = clients()
    now = datetime.now(UTC)
    headers = {
        "content-type": "application/cloudevents+json",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": webhook.sign(name, now, body),
    }
    begun = time.monotonic()
    answer = session.post(url, data=body.encode(), headers=headers, timeout=(5, 15), allow_redirects=False)
    ms = round((time.monotonic() - begun) * 1000)
    store.rpush("attempts", json.dumps({"id": name, "status": answer.status_code, "ms": ms, "at": now.isoformat()}))
    if not answer.ok:
        raise self.retry(countdown=5)
