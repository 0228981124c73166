"""The server on a Ray cluster: the app in several replicas, and one door before them.

Ray Serve starts replicas, replaces dead ones, and makes more or fewer of them with the load. It
sends a request again if a replica died before it was taken on; a request that a replica was
working on it gives up (Ray 2.60: `ActorDiedError` to the caller, 500 by its own proxy). Answers
here change nothing anywhere, so the door keeps each request and asks another replica, unless a
part of the answer is out already.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from taskfit.errors import SettingsError
from taskfit.runs.cluster import RayCluster, connect, worker_environment
from taskfit.serve.guard import Guard, Message, Receive, Scope, Send
from taskfit.serve.limits import Limits
from taskfit.serve.metrics import Metrics
from taskfit.serve.replica import Asked, Part, Replica
from taskfit.serve.replies import JsonResponse, error_response, wire_of
from taskfit.serve.waiting import REQUEST_ID, STOPPING, BusyError
from taskfit.serve.work import Engine, RequestError
from taskfit.serve.worker import as_request_error

log = logging.getLogger("taskfit.serve")
NAME = "taskfit"
# Replicas that are asked, one after the other, before a request is given up.
TRIES = 3
# Requests that a replica has at once, on average, before another is started.
TARGET_REQUESTS = 16
# Of the connection to the client, or given by the door itself.
OWN_HEADERS = (b"connection", b"content-encoding", b"content-length", b"transfer-encoding")
IDS = (b"x-request-id", b"x-typesafe-request-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How many replicas there are, and what each asks of a cluster.

    Attributes:
        least: That are always there.
        most: Under load; None: as many as `least`.
        address: Of the cluster, or None for a new one on this machine.
        cpus: Processor cores of each.
        gpus: GPUs of each; a fraction shares one.
    """

    least: int = 2
    most: int | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no cluster can have."""
        if self.least < 1:
            raise SettingsError(f"--replicas is {self.least}; give a number from 1.")
        if self.most is not None and self.most < self.least:
            raise SettingsError(
                f"--max-replicas is {self.most}, which is less than --replicas ({self.least})."
            )


class Door:
    """What clients are connected to: an ASGI app that keeps each request until it is answered.

    Attributes:
        error: Why the replicas did not come up; else None.
        num_requests: Requests that are not answered yet.
    """

    def __init__(
        self,
        ray: ModuleType,
        make_engine: Callable[[], Engine],
        *,
        limits: Limits,
        replicas: Replicas,
    ) -> None:
        """Prepare for a cluster that this process is connected to."""
        self.error: str | None = None
        self.num_requests = 0
        self._is_draining = False
        self._ray = ray
        self._make_engine = make_engine
        self._limits = limits
        self._replicas = replicas
        self._handle: Any = None

    @property
    def is_ready(self) -> bool:
        """Whether there are replicas to ask, and requests are taken."""
        return self._handle is not None and not self._is_draining

    def drain(self) -> None:
        """Take no more requests; those that were accepted go on."""
        self._is_draining = True

    def close(self) -> None:
        """Give up those that are still there: their connections end with the server."""
        self.drain()

    def start_replicas(self) -> None:
        """Start the replicas; returns when they are ready or have failed."""
        from ray import serve

        asked = self._replicas
        options: dict[str, Any] = {"num_replicas": asked.least}
        if asked.most is not None and asked.most > asked.least:
            scaling = {"min_replicas": asked.least, "max_replicas": asked.most}
            scaling |= {"target_ongoing_requests": TARGET_REQUESTS}
            options = {"autoscaling_config": scaling}
        replica = serve.deployment(
            **options,
            name="replica",
            max_ongoing_requests=self._limits.max_queue,
            graceful_shutdown_timeout_s=self._limits.grace,
            ray_actor_options={"num_cpus": asked.cpus, "num_gpus": asked.gpus},
        )(Replica)
        bound = replica.bind(
            self._make_engine,
            self._limits,
            folder=str(Path.cwd()),
            environment=worker_environment(),
            num_threads=max(1, int(asked.cpus)),
        )
        try:
            serve.start(proxy_location="Disabled")
            handle = serve.run(bound, name=NAME, route_prefix=None)
        except Exception as error:
            self.error = "This server's models do not work; its log says why."
            log.error("The replicas did not come up: %s", error)
            return
        self._handle = handle.options(method_name="answer", stream=True)

    def stop_replicas(self) -> None:
        """Stop them, and lose the requests that they work on."""
        from ray import serve

        if self._handle is not None:
            self._handle = None
            serve.delete(NAME)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that has passed the guard."""
        self.num_requests += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.num_requests -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, is_begun = REQUEST_ID.get(), False
        headers = [pair for pair in scope["headers"] if pair[0] not in (*OWN_HEADERS, *IDS)]
        headers.append((IDS[0], request_id.encode()))
        body = await Request(scope, receive).body()
        asked = Asked(scope["method"], scope["path"], scope["query_string"], headers, body)
        try:
            async with asyncio.timeout(self._limits.timeout) as clock:
                async for part in self._answer(asked):
                    if not is_begun:
                        is_begun = True
                        clock.reschedule(None)
                        await send(_start(part))
                    message = {"type": "http.response.body", "body": part.body}
                    await send(message | {"more_body": part.more})
        except Exception as error:
            if is_begun:
                raise
            if isinstance(error, TimeoutError):
                error = RequestError(504, "No answer in time; the server is busy.")
            refused = as_request_error(error, request_id)
            response = error_response(wire_of(scope["path"]), refused)
            await response(scope, receive, send)

    async def _answer(self, asked: Asked) -> AsyncIterator[Part]:
        """Ask replicas until one answers.

        Raises:
            BusyError: 503 if there is none, or all that were asked died.
        """
        if self._is_draining:
            raise BusyError(503, STOPPING)
        if self._handle is None:
            raise BusyError(503, self.error or "This server is loading its models; try again soon.")
        lost = self._ray.exceptions
        for _ in range(TRIES):
            is_begun = False
            parts = self._handle.remote(asked)
            try:
                async for part in parts:
                    is_begun = True
                    yield part
                return
            except (lost.RayActorError, lost.NodeDiedError, lost.WorkerCrashedError):
                if is_begun:
                    raise
                log.warning("A replica died under a request, which is given to another one.")
            except (asyncio.CancelledError, GeneratorExit):
                parts.cancel()
                raise
        raise BusyError(503, "Several replicas died under this request; try again later.")


def create_cluster_app(
    make_engine: Callable[[], Engine],
    limits: Limits,
    *,
    api_key: str | None = None,
    replicas: Replicas,
) -> Starlette:
    """Return an app that serves an engine from replicas on a Ray cluster; see `app.create_app`.

    Args:
        make_engine: Loads the engine, in each replica.
        limits: Of requests at the door, and of queue and time in each replica.
        api_key: What clients must send; None: nothing.
        replicas: How many, and where.

    Raises:
        SettingsError: If Ray is absent or cannot be reached, or is too small for the replicas.
    """
    ray, is_ours = connect(RayCluster(replicas.address), instead="leave out --ray")
    check_size(ray.cluster_resources(), replicas)
    metrics = Metrics()
    door = Door(ray, make_engine, limits=limits, replicas=replicas)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Where the server around the app looks for what it drains.
        app.state.service = SimpleNamespace(scheduler=door)
        starting = asyncio.create_task(asyncio.to_thread(door.start_replicas))
        try:
            yield
        finally:
            await starting
            await asyncio.to_thread(door.stop_replicas)
            if is_ours:
                ray.shutdown()

    async def health(request: Request) -> Response:
        status = "failed" if door.error else "alive"
        return JsonResponse({"status": status}, status_code=503 if door.error else 200)

    async def readyz(request: Request) -> Response:
        status = "ready" if door.is_ready else "not ready"
        return JsonResponse({"status": status}, status_code=200 if door.is_ready else 503)

    async def told(request: Request) -> Response:
        return Response(metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})

    routes = [Route("/health", health), Route("/readyz", readyz), Route("/metrics", told)]
    app = Starlette(routes=[*routes, Mount("/", door)], lifespan=lifespan)
    app.add_middleware(Guard, limits=limits, metrics=metrics, api_key=api_key)
    return app


def check_size(resources: Mapping[str, float], replicas: Replicas) -> None:
    """Refuse a cluster that cannot hold the replicas, which Ray would wait for without an end.

    Raises:
        SettingsError: If a cluster on this machine is too small; another one may grow.
    """
    for kind, each in (("CPU", replicas.cpus), ("GPU", replicas.gpus)):
        if replicas.address is None and resources.get(kind, 0.0) < each * replicas.least:
            raise SettingsError(
                f"{replicas.least} replicas of {each:g} {kind}s each do not fit here: Ray has "
                f"{resources.get(kind, 0.0):g}. Lower --replicas."
            )


def _start(part: Part) -> Message:
    headers = [pair for pair in part.headers if pair[0] not in IDS]
    return {"type": "http.response.start", "status": part.status, "headers": headers}
