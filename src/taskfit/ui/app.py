"""The server of `taskfit ui`: addresses and what stands behind them. It binds to loopback only."""

import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from taskfit.errors import SettingsError, TaskfitError
from taskfit.ui import worker
from taskfit.ui.budgets import BudgetPlan, describe_budgets, find_budget, plan_budgets, write_grid
from taskfit.ui.guard import REPORT_POLICY, Guard, key_of
from taskfit.ui.look import choose_columns, look_at_columns, look_at_task
from taskfit.ui.progress import phase_of, state_of
from taskfit.ui.project import (
    NotThereError,
    Project,
    TooLargeError,
    add_test,
    find_project,
    find_projects,
    new_project,
)
from taskfit.ui.trying import Tried, pack
from taskfit.ui.verdict import find_run

UPLOAD_BYTES = 500_000_000


class Columns(BaseModel):
    """Which columns hold what."""

    text: list[str]
    label: str


class Start(BaseModel):
    """Which budget to start."""

    budget: str


class Ask(BaseModel):
    """Texts to ask a run, one for each text column."""

    run: str
    texts: list[str]


class Serve(BaseModel):
    """Which run to serve."""

    run: str


@dataclass(slots=True)
class Ui:
    """What the server holds beside files.

    Attributes:
        home: Folder of projects.
        base: Settings of every new project; see `Choices`.
    """

    home: Path
    base: dict[str, Any]
    tried: Tried = field(default_factory=Tried)
    # One look or plan at a time: both take all of the machine for seconds.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def project(self, name: str) -> Project:
        """Return a project; see `find_project`."""
        return find_project(self.home, name)

    def plan(self, project: Project) -> dict[str, BudgetPlan]:
        """Return the plans of all budgets; see `plan_budgets`."""
        with self.lock:
            return plan_budgets(project)


def make_app(home: Path, *, base: dict[str, Any] | None = None) -> FastAPI:
    """Return the server.

    Args:
        home: Folder of projects.
        base: Settings that new projects share, such as the model.
    """
    ui = Ui(home, base or {})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        ui.tried.close()

    app = FastAPI(title="taskfit ui", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key_of(home))

    async def refuse(_: Request, error: Exception) -> Response:
        statuses: dict[type[Exception], int] = {TooLargeError: 413, NotThereError: 404}
        status = statuses.get(type(error), 422)
        return JSONResponse({"error": str(error)}, status)

    app.add_exception_handler(TaskfitError, refuse)
    app.include_router(_projects(ui))
    app.include_router(_runs(ui))
    app.mount("/", StaticFiles(directory=str(files("taskfit.ui") / "page"), html=True))
    return app


def _told(project: Project, look: Callable[[], Any]) -> Any:  # noqa: ANN401 - JSON values
    """Return what a function does; its errors call files what people called them."""
    try:
        return look()
    except TaskfitError as error:
        raise type(error)(project.in_words(str(error))) from error


def _projects(ui: Ui) -> APIRouter:
    """Return the addresses of a project until its comparison starts."""
    api = APIRouter(prefix="/api/projects")

    @api.get("")
    def listed() -> list[dict[str, str]]:
        return [
            {"id": one.id, "name": one.choices.name, "phase": phase_of(one)}
            for one in find_projects(ui.home).values()
        ]

    @api.post("", status_code=201)
    async def upload(name: str, request: Request) -> dict[str, str]:
        made = await new_project(ui.home, name, request.stream(), limit=UPLOAD_BYTES, base=ui.base)
        try:
            await run_in_threadpool(_told, made, lambda: look_at_columns(made))
        except TaskfitError:
            shutil.rmtree(made.folder)  # what cannot be read leaves nothing
            raise
        return {"id": made.id}

    @api.post("/{name}/test", status_code=204)
    async def upload_test(name: str, file: str, request: Request) -> None:
        project = ui.project(name)
        _refuse_started(project)
        await add_test(project, file, request.stream(), limit=UPLOAD_BYTES)

    @api.get("/{name}/columns")
    def columns(name: str) -> Any:  # noqa: ANN401 - JSON values
        project = ui.project(name)
        return _told(project, lambda: look_at_columns(project))

    @api.post("/{name}/columns", status_code=204)
    def choose(name: str, chosen: Columns) -> None:
        project = ui.project(name)
        _refuse_started(project)
        _told(project, lambda: choose_columns(project, chosen.text, chosen.label))

    @api.get("/{name}/task")
    def task(name: str) -> Any:  # noqa: ANN401 - JSON values
        project = ui.project(name)
        with ui.lock:
            return _told(project, lambda: look_at_task(project))

    @api.get("/{name}/budgets")
    def budgets(name: str) -> Any:  # noqa: ANN401 - JSON values
        project = ui.project(name)
        return _told(project, lambda: describe_budgets(ui.plan(project)))

    return api


def _refuse_started(project: Project) -> None:
    if (project.folder / worker.STATUS).is_file():
        raise SettingsError(
            "A comparison of this table was started, so its columns and test rows stay. Drop the "
            "table again for others."
        )


def _runs(ui: Ui) -> APIRouter:
    """Return the addresses of a comparison and its runs."""
    api = APIRouter(prefix="/api/projects/{name}")

    @api.post("/start", status_code=202)
    def start(name: str, chosen: Start) -> dict[str, int]:
        project, budget = ui.project(name), find_budget(chosen.budget)
        plans = ui.plan(project)[chosen.budget].methods
        planned = {name: one.seconds for name, one in plans.items() if one.seconds is not None}
        if worker.at_work(project) is None:
            project.choose(budget=chosen.budget, planned=planned)
            write_grid(project, budget)
        return {"process": worker.start(project)}

    @api.post("/stop", status_code=202)
    def stop(name: str) -> None:
        worker.stop(ui.project(name))

    @api.get("/state")
    def state(name: str) -> dict[str, Any]:
        project = ui.project(name)
        return {**state_of(project), "columns": list(project.choices.text)}

    @api.get("/report")
    def report(name: str) -> Response:
        path = ui.project(name).comparison / "report.html"
        if not path.is_file():
            raise NotThereError("There is no report yet.")
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return FileResponse(path, headers=headers, media_type="text/html")

    @api.post("/try")
    def ask(name: str, asked: Ask) -> list[dict[str, Any]]:
        return ui.tried.answer(find_run(ui.project(name), asked.run).folder, asked.texts)

    @api.post("/serve")
    def serve(name: str, asked: Serve) -> dict[str, str]:
        project = ui.project(name)
        run = find_run(project, asked.run).folder
        return {"address": ui.tried.serve(run, project.folder / "serve.txt")}

    @api.get("/runs/{run}/zip")
    def download(name: str, run: str) -> Response:
        project = ui.project(name)
        found = find_run(project, run).folder
        file = pack(found, project.folder / "run.zip")
        return FileResponse(file, filename=f"{found.name}.zip", media_type="application/zip")

    return api
