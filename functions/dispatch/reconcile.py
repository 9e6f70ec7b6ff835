"""dispatch's hands: look at a job, decide (handler.py), act. Every act may be repeated, by this process or another.

The order inside an act is what makes a crash harmless: an alarm is set before anything is started, an event is written
before the act that it announces, and the caller's message is acknowledged only after all of it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from engine.adapters.history import REDRIVE_HEADER
from engine.contract.artifact import completed_data
from engine.contract.errors import AtCapacity, Conflict, Invalid, JobFailed, NotFound
from engine.contract.events import job_event, rivals
from engine.contract.job import Job, State, artifact_key, checkpoint_folder, run_name
from engine.contract.plan import Plan, choose
from engine.contract.streams import alarm_subjects
from functions.deps import Deps
from functions.dispatch.handler import Act, Decision, after_failure, decide
from functions.dispatch.hint import Hint
from functions.dispatch.launcher import ActiveRun, Failure, Launcher, Observation, Phase
from functions.dispatch.places import Places

_LOG = logging.getLogger(__name__)


class Reconciler:
    """One level-based look at one job at a time."""

    def __init__(self, deps: Deps, launcher: Launcher, *, environ: Mapping[str, str]) -> None:
        self._deps = deps
        self._launcher = launcher
        self._environ = {**environ, **deps.settings.environ()}
        self._places = Places(deps.settings)
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

    def look(self, tenant: str, job_id: str, *, is_queued: bool = False, is_hint: bool = False) -> None:
        """Do what is to be done about this job now. Raises AtCapacity, NotFound, Unavailable.

        `is_queued`: the caller holds the job's request and comes again, so that a first launch may be refused. Whoever
        else finds no place leaves an alarm: an alarm that had to wait would hold up those of the jobs that run.
        `is_hint`: something changed just now.
        """
        job = self._deps.history.get(tenant, job_id)
        run = self._observe(job, is_fresh=is_hint)
        if run.phase.is_over:
            # Its last words came before its end, but perhaps after the read above.
            job = self._deps.history.get(tenant, job_id)
        decision = decide(job, run, now=datetime.now(UTC), stall_s=self._deps.settings.stall_s)
        try:
            self._act(job, decision)
        except AtCapacity:
            if is_queued and job.attempt == 0:
                raise
            self._come_again(job)
        self._stop_others(job)

    def _come_again(self, job: Job) -> None:
        """Nobody else will: a job that was to start later joins the queue, any other gets an alarm."""
        if job.attempt == 0 and job.due_at > job.created_at:
            self._queue(job)
        else:
            self._set_alarm(job)

    def take(self, hint: Hint) -> None:
        """Look at the job that a hint is about; a run whose job the log does not know is ended. Raises Unavailable."""
        tenant = hint.tenant or self._launcher.tenant_of(hint.run)
        if not tenant:
            return
        try:
            self.look(tenant, hint.job, is_hint=True)
        except NotFound:
            # By the run's own label: an event may say anything.
            if self._launcher.tenant_of(hint.run) == tenant:
                _LOG.warning("job=%s is unknown; run=%s is ended", hint.job, hint.run)
                self._launcher.cancel(hint.run)

    def _observe(self, job: Job, *, is_fresh: bool) -> Observation:
        if job.attempt == 0 and not job.state.is_final:
            # To be launched or to be ended, whatever is there: both are the same for a run that is there already.
            return Observation(phase=Phase.ABSENT)
        return self._launcher.observe(run_name(job.id, max(1, job.attempt)), is_fresh=is_fresh)

    def _stop_others(self, job: Job) -> None:
        """End runs of older attempts: a dispatch that died between two acts may have left one."""
        older = {run_name(job.id, attempt) for attempt in range(1, job.attempt)}
        if older:
            for name in older & {run.name for run in self._launcher.active()}:
                _LOG.warning("job=%s run=%s is of an older attempt and is ended", job.id, name)
                self._launcher.cancel(name)

    def _act(self, job: Job, decision: Decision) -> None:
        _LOG.info("job=%s attempt=%d act=%s", job.id, job.attempt, decision.act)
        self._acts[decision.act](job, decision)

    def _nothing(self, _job: Job, _decision: Decision) -> None:
        pass

    def _wait(self, job: Job, decision: Decision) -> None:
        self._set_alarm(job)
        why = decision.waiting
        # Once per reason: the words change with every node that comes or goes. A job whose run waits again, as when
        # Kueue took its place, is not set back.
        if why and job.state is State.PENDING and job.waiting.get("reason") != why.reason:
            data = {"attempt": job.attempt, "reason": why.reason, "message": why.message}
            self._say("waiting", job, data, key=f"a{job.attempt}-{why.reason}")

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
        try:
            plan = self._plan(job)
        except Invalid as error:
            failure = Failure(code="plan_invalid", message=str(error), retryable=False)
            return self._act(job, Decision(act=Act.FAIL, failure=failure))
        run = ActiveRun(name=run_name(job.id, attempt), tenant=job.tenant, num_gpus=plan.world_size)
        try:
            with self._places.take(job, run, active=self._launcher.active):
                self._set_alarm(job)
                self._launcher.launch(job, attempt=attempt, plan=plan, environ=self._environ)
        except JobFailed as error:
            failure = Failure(code=error.code, message=error.message, retryable=error.retryable)
            return self._act(job, after_failure(job, failure))
        data = {"attempt": attempt, "launcher": self._launcher.name, "run": run.name, "plan": plan.to_json()}
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
            has_negative=given.has_negative,
            speed=settings.speed,
        )

    def _stop(self, job: Job, _decision: Decision) -> None:
        # The first one may have been started by a dispatch that died before it could say so.
        self._launcher.cancel(run_name(job.id, max(1, job.attempt)))

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
