"""dispatch's hands: look at a job, decide (handler.py), act. Every act may be repeated, by this process or another.

The order inside an act is what makes a crash harmless: an alarm is set before anything is started, an event is written
before the act that it announces, and the caller's message is acknowledged only after all of it.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from engine.adapters.history import REDRIVE_HEADER
from engine.contract.artifact import completed_data
from engine.contract.errors import AtCapacity, Conflict, Invalid, NotFound
from engine.contract.events import job_event, rivals
from engine.contract.job import Job, artifact_key, checkpoint_folder, run_name
from engine.contract.plan import Plan, choose
from engine.contract.streams import alarm_subjects
from functions.deps import Deps
from functions.dispatch.handler import Act, Decision, after_failure, decide
from functions.dispatch.launcher import Failure, Launcher, Phase

_LOG = logging.getLogger(__name__)
# A waiting request asks again this often; it costs one small HTTP call.
_RETRY_AFTER_S = 1.0


class Reconciler:
    """One level-based look at one job at a time."""

    def __init__(self, deps: Deps, launcher: Launcher, *, environ: Mapping[str, str]) -> None:
        self._deps = deps
        self._launcher = launcher
        self._environ = {**environ, **deps.settings.environ()}
        # Counting the runs and starting one more must not be interleaved with another request's.
        self._places = threading.Lock()
        self._acts: dict[Act, Callable[[Job, Decision], None]] = {
            Act.NOTHING: self._nothing,
            Act.WAIT: self._wait,
            Act.SCHEDULE: self._schedule,
            Act.LAUNCH: self._launch,
            Act.STOP: self._stop,
            Act.CANCEL: self._cancel,
            Act.RECOVER: self._recover,
            Act.RETRY: self._retry,
            Act.FAIL: self._fail,
        }

    def look(self, tenant: str, job_id: str, *, is_queued: bool) -> None:
        """Do what is to be done about this job now. Raises AtCapacity, NotFound, Unavailable.

        `is_queued`: the caller holds the job's request and comes again, so that a first launch may be refused. Whoever
        else finds no place leaves an alarm: an alarm that had to wait would hold up those of the jobs that run.
        """
        job = self._deps.history.get(tenant, job_id)
        run = self._launcher.observe(run_name(job.id, job.attempt))
        if run.phase in (Phase.SUCCEEDED, Phase.FAILED):
            # Its last words came before its end, but perhaps after the read above.
            job = self._deps.history.get(tenant, job_id)
        decision = decide(job, run, now=datetime.now(UTC), stall_s=self._deps.settings.stall_s)
        try:
            self._act(job, decision)
        except AtCapacity:
            if is_queued and job.attempt == 0:
                raise
            if job.attempt == 0 and job.due_at > job.created_at:
                return self._queue(job)
            self._set_alarm(job)

    def _act(self, job: Job, decision: Decision) -> None:
        _LOG.info("job=%s attempt=%d act=%s", job.id, job.attempt, decision.act)
        self._acts[decision.act](job, decision)

    def _nothing(self, _job: Job, _decision: Decision) -> None:
        pass

    def _wait(self, job: Job, _decision: Decision) -> None:
        self._set_alarm(job)

    def _schedule(self, job: Job, _decision: Decision) -> None:
        self._set_alarm(job, when=job.due_at)

    def _queue(self, job: Job) -> None:
        """Put a job that has become due behind those that wait, for the consumer of its priority alone."""
        data = {"request": job.request.to_json(), **({"retry_of": job.retry_of} if job.retry_of else {})}
        event = job_event("requested", data, tenant=job.tenant, job=job.id, key="due", extensions=job.extensions)
        self._deps.bus.publish(
            replace(event, time=job.created_at), headers={REDRIVE_HEADER: f"dispatch-{job.request.priority}"}
        )

    def _launch(self, job: Job, decision: Decision) -> None:
        attempt = decision.attempt
        settings = self._deps.settings
        try:
            plan = self._plan(job)
        except Invalid as error:
            failure = Failure(code="plan_invalid", message=str(error), retryable=False)
            return self._act(job, Decision(act=Act.FAIL, failure=failure))
        run = run_name(job.id, attempt)
        with self._places:
            others = [name for name in self._launcher.active() if name != run]
            if len(others) >= settings.max_runs:
                message = f"{settings.max_runs} runs are active, which is the limit"
                raise AtCapacity(message, retry_after_s=_RETRY_AFTER_S)
            self._set_alarm(job)
            self._launcher.launch(job, attempt=attempt, plan=plan, environ=self._environ)
        data = {"attempt": attempt, "launcher": self._launcher.name, "run": run, "plan": plan.to_json()}
        return self._say("launched", job, data, key=f"a{attempt}")

    def _plan(self, job: Job) -> Plan:
        given, settings = job.request.input, self._deps.settings
        return choose(
            job.request.row,
            num_nodes=settings.num_nodes,
            num_processes=settings.num_processes,
            width=given.width,
            height=given.height,
            num_frames=given.num_frames,
            gpu_memory_gib=settings.gpu_memory_gib,
        )

    def _stop(self, job: Job, _decision: Decision) -> None:
        self._launcher.cancel(run_name(job.id, job.attempt))

    def _cancel(self, job: Job, decision: Decision) -> None:
        self._stop(job, decision)
        # A run that had to be killed could not tidy up; those of a failed job stay, for whoever tries it again.
        for key in self._deps.store.list(checkpoint_folder(job.tenant, job.id)):
            self._deps.store.delete(key)
        self._say_done("cancelled", job, {"attempt": job.attempt})

    def _recover(self, job: Job, decision: Decision) -> None:
        assert decision.failure is not None
        try:
            manifest = self._deps.store.read(artifact_key(job.tenant, job.id, job.attempt, "manifest.json"))
        except NotFound:
            return self._act(job, after_failure(job, decision.failure))
        # The artifacts are there and the engine could not say so any more: its words, under its event's id.
        return self._say_done("completed", job, completed_data(manifest))

    def _retry(self, job: Job, decision: Decision) -> None:
        assert decision.failure is not None
        self._stop(job, decision)
        self._say(
            "retrying",
            job,
            {"attempt": decision.attempt, "error": decision.failure.to_json()},
            key=f"a{decision.attempt}",
        )
        self._launch(replace(job, attempt=decision.attempt), decision)

    def _fail(self, job: Job, decision: Decision) -> None:
        assert decision.failure is not None
        self._stop(job, decision)
        self._say_done("failed", job, {"attempt": job.attempt, "error": decision.failure.to_json()})

    def _set_alarm(self, job: Job, *, when: datetime | None = None) -> None:
        set_on, due_on = alarm_subjects(job.tenant, job.id)
        event = job_event("check", {}, tenant=job.tenant, job=job.id, extensions=job.extensions)
        soon = datetime.now(UTC) + timedelta(seconds=self._deps.settings.check_interval_s)
        self._deps.bus.publish_at(event, set_on=set_on, due_on=due_on, when=when or soon)

    def _say(self, name: str, job: Job, data: dict[str, Any], *, key: str) -> None:
        event = job_event(name, data, tenant=job.tenant, job=job.id, key=key, extensions=job.extensions)
        self._deps.bus.publish(event)

    def _say_done(self, name: str, job: Job, data: dict[str, Any]) -> None:
        event = job_event(name, data, tenant=job.tenant, job=job.id, key=f"a{job.attempt}", extensions=job.extensions)
        try:
            self._deps.bus.publish(event, first=rivals(event))
        except Conflict:
            _LOG.info("job=%s is already done; %s came too late", job.id, name)
