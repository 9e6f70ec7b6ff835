"""dispatch: gets a job's events from a source and looks at the job. The edge; decisions are handler.py's."""

import os
from collections.abc import Mapping
from pathlib import Path

from flask import Flask, Response

from engine.contract.settings import Settings
from functions.deps import Deps, open_deps
from functions.dispatch import hint
from functions.dispatch.launcher import Launcher
from functions.dispatch.launchers.local import LocalLauncher
from functions.dispatch.reconcile import Reconciler
from functions.web import empty, log_to_stderr, make_app, read_event

_CAUSES = frozenset({"requested", "cancel", "check"})


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The app with its clients from the environment; `app.extensions["deps"].close()` ends them."""
    log_to_stderr()
    settings = Settings.read(environ)
    launcher = _launcher(settings, environ)
    return make(open_deps(settings), launcher, environ=environ)


def make(deps: Deps, launcher: Launcher, *, environ: Mapping[str, str]) -> Flask:
    """The app over these clients and this launcher; runs inherit `environ`."""
    app = make_app("dispatch", ping=deps.ping)
    app.extensions["deps"] = deps
    reconciler = Reconciler(deps, launcher, environ=environ)

    @app.post("/")
    def receive() -> Response:
        event = read_event(_CAUSES | hint.TYPES)
        if event.type in hint.TYPES:
            found = hint.read(event)
            if found:
                reconciler.take(found)
            return empty(204)
        reconciler.look(event.data["tenant"], event.data["job"], is_queued=event.name == "requested")
        return empty(204)

    return app


def _launcher(settings: Settings, environ: Mapping[str, str]) -> Launcher:
    if settings.launcher == "local":
        return LocalLauncher(Path(settings.runs_dir), command=settings.engine_command)
    # Only now: kubernetes takes most of a second to import.
    from functions.dispatch.launchers.cluster import open_launcher

    return open_launcher(settings, environ)
