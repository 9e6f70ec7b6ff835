"""Places: how many runs there may be at one time, and who comes first."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest

from engine.contract.errors import AtCapacity, TenantAtCapacity
from engine.contract.job import Job, derived_id, run_name
from engine.contract.settings import Settings
from functions.dispatch.launcher import ActiveRun
from functions.dispatch.places import Active, Places
from tests.make import a_job


def a_numbered_job(number: int, tenant: str = "default") -> Job:
    """A job that was accepted as this one in the log."""
    return replace(a_job(), id=derived_id(tenant, "test", str(number)), tenant=tenant, sequence=number)


def its_run(job: Job, *, num_gpus: int = 8, is_queued: bool = False) -> ActiveRun:
    return ActiveRun(name=run_name(job.id, 1), tenant=job.tenant, num_gpus=num_gpus, is_queued=is_queued)


def seen(*runs: ActiveRun) -> Active:
    """A launcher's `active`, whenever it is asked."""

    def active(*, is_fresh: bool) -> Sequence[ActiveRun]:
        return runs

    return active


def may_start(places: Places, job: Job, active: Sequence[ActiveRun] = ()) -> bool:
    try:
        with places.take(job, its_run(job), active=seen(*active)):
            return True
    except AtCapacity:
        return False


ONE, TWO, THREE = (a_numbered_job(number) for number in (1, 2, 3))
OTHER = a_numbered_job(4, tenant="other")


def test_runs_are_limited() -> None:
    places = Places(Settings(max_runs=2))

    assert may_start(places, ONE, [its_run(TWO)])
    assert not may_start(places, ONE, [its_run(TWO), its_run(THREE)])


def test_a_place_that_has_become_free_meanwhile_is_seen() -> None:
    places = Places(Settings(max_runs=1))

    with places.take(ONE, its_run(ONE), active=lambda is_fresh: [] if is_fresh else [its_run(TWO)]):
        pass


def test_gpus_are_limited() -> None:
    places = Places(Settings(max_runs=9, max_gpus=16))

    assert may_start(places, ONE, [its_run(TWO)])
    assert not may_start(places, ONE, [its_run(TWO, num_gpus=9)])


def test_what_is_being_started_counts_already() -> None:
    places = Places(Settings(max_runs=1))

    with places.take(ONE, its_run(ONE), active=seen()):
        assert not may_start(places, TWO)
    assert may_start(places, TWO)


def test_a_jobs_own_run_takes_nobodys_place() -> None:
    places = Places(Settings(max_runs=1))

    assert may_start(places, replace(ONE, attempt=2), [its_run(ONE)])


def test_a_tenant_at_its_limit_waits_alone() -> None:
    places = Places(Settings(max_runs=9, max_tenant_runs=1))

    with pytest.raises(TenantAtCapacity), places.take(TWO, its_run(TWO), active=seen(its_run(ONE))):
        pass
    assert may_start(places, OTHER, [its_run(ONE)])


def test_a_tenants_jobs_start_in_the_order_in_which_they_were_accepted() -> None:
    places = Places(Settings(max_runs=9, max_tenant_runs=1))
    running = [its_run(ONE)]
    assert not may_start(places, THREE, running)
    assert not may_start(places, TWO, running)

    assert not may_start(places, THREE), "the place that became free is the second job's"
    assert may_start(places, TWO)
    assert may_start(places, THREE)


def test_a_retry_stands_in_no_line() -> None:
    places = Places(Settings(max_runs=9, max_tenant_runs=1))
    assert not may_start(places, ONE, [its_run(OTHER), its_run(THREE)])

    assert may_start(places, replace(TWO, attempt=2))


def test_the_further_back_in_line_the_longer_the_wait() -> None:
    places = Places(Settings(max_runs=9, max_tenant_runs=1))
    waits = []
    for number in range(2, 12):
        job = a_numbered_job(number)
        with ExitStack() as stack, pytest.raises(TenantAtCapacity) as caught:
            stack.enter_context(places.take(job, its_run(job), active=seen(its_run(ONE))))
        waits.append(caught.value.retry_after_s)

    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (5.0, pytest.approx(5.9))


def test_with_kueue_only_those_that_wait_there_are_limited() -> None:
    places = Places(Settings(max_runs=2, max_gpus=8, max_tenant_runs=1, kueue_queue="video"))
    running = [its_run(a_numbered_job(number)) for number in range(10, 30)]
    waiting = [its_run(a_numbered_job(number), is_queued=True) for number in (40, 41)]

    assert may_start(places, ONE, [*running, waiting[0]])
    assert not may_start(places, ONE, [*running, *waiting])
