"""Finished runs in memory together: requests in, probabilities and texts out.

Runs over one base share it; which adapter computes is chosen for each request.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from taskfit.errors import SettingsError, suggestion
from taskfit.models.served import padded_note
from taskfit.runs.load import load_run
from taskfit.runs.shared_bases import SharedBases
from taskfit.serve.build import served_base, served_run
from taskfit.serve.served import EncodedJob, ServedModel
from taskfit.serve.work import (
    Answers,
    GenerateRequest,
    Job,
    ModelCard,
    Piece,
    PromptToken,
    RequestError,
    StateRequest,
    TextsRequest,
)

T = TypeVar("T")


def load_engine(
    runs: Mapping[str, Path],
    *,
    base: str | None = None,
    device: str = "auto",
    allow_other_base: bool = False,
    fold: bool | None = None,
    option_orders: int = 1,
) -> "RunsEngine":
    """Load runs, and a base where one is named, each model of which many are made once.

    Args:
        runs: Name in requests -> folder of a finished run.
        base: A causal language model, served under this name as it is: packaged model, hub id or
            folder.
        device: Where to put them; see `model.device`.
        allow_other_base: Whether a base will do that is not the one of a run.
        fold: Whether each run has a copy of the weights with its adapter folded in; see
            `LeanPass.use`. None: no, where several runs rest on a base.
        option_orders: Orders of the options of questions that nothing was fitted to; their
            probabilities are averaged.

    Raises:
        TaskfitError: If there is nothing to serve, a run cannot be loaded, or a name stands twice.
    """
    if not runs and base is None:
        raise SettingsError("There is nothing to serve: name a finished run, or a model.")
    if base in runs:
        raise SettingsError(f"A run and a model are both called {base!r}. Rename the run.")
    bases = SharedBases()
    served = []
    for name, folder in runs.items():
        found = load_run(folder, device=device, allow_other_base=allow_other_base, bases=bases)
        served.append(served_run(name, folder, found, option_orders=option_orders))
    if base is not None:
        served.append(served_base(base, bases, device=device, option_orders=option_orders))
    if fold is None and bases.num_adapters > 1:
        fold = False
    for model in served:
        if model.tree is not None:
            model.tree.prepare_scoring(fold=fold)
            model.warm_up()
    return RunsEngine(served, num_bases=bases.num_bases)


class RunsEngine:
    """Answers requests for the models that it holds; see `work.Engine`.

    Attributes:
        num_bases: Base models in memory that are shared.
    """

    def __init__(self, served: Sequence[ServedModel], *, num_bases: int = 0) -> None:
        """Serve models, each under the name on its card."""
        self._served = {model.card.name: model for model in served}
        self.num_bases = num_bases

    @property
    def notes(self) -> list[str]:
        """Return what people should know of how models run, each sentence once."""
        trees = [model.tree for model in self._served.values() if model.tree is not None]
        refusals = [tree.refusal for tree in trees if tree.refusal is not None]
        stock = [note for tree in trees if (note := tree.lean.stock_note()) is not None]
        return [*dict.fromkeys([*map(padded_note, refusals), *stock])]

    def models(self) -> Sequence[ModelCard]:
        """Return what is served, in the order in which it was named."""
        return [model.card for model in self._served.values()]

    def encode(self, request: TextsRequest | StateRequest) -> EncodedJob:
        """Check a request and turn it into tokens; any thread may call it at any time.

        Raises:
            RequestError: 404 for a model, 422 for a question or text that cannot be served.
        """
        model = self._named(request.model)
        if isinstance(request, TextsRequest):
            return model.encode_texts(request)
        return model.encode_state(request)

    def score(self, jobs: Sequence[Job]) -> Sequence[Answers | Exception]:
        """Answer jobs, those of one model as one tree; see `work.Engine.score`."""
        result: list[Answers | Exception] = [KeyError("not scored")] * len(jobs)
        by_model: dict[str, list[int]] = {}
        for place, job in enumerate(jobs):
            by_model.setdefault(job.model, []).append(place)
        for name, places in by_model.items():
            own = [job for job in (jobs[i] for i in places) if isinstance(job, EncodedJob)]
            found = in_smaller_parts(self._served[name].score, own)
            for place, answer in zip(places, found, strict=True):
                result[place] = answer
        return result

    def generate(self, request: GenerateRequest) -> Iterator[Piece]:
        """Check a request now, and write the answer token by token; see `work.Engine.generate`.

        Raises:
            RequestError: 404 for a model, 422 for a prompt or setting that cannot be served.
        """
        model = self._named(request.model)
        if model.writer is None:
            writers = [name for name, other in self._served.items() if other.writer is not None]
            raise RequestError(
                422,
                f"{request.model} answers with labels and writes no text. "
                f"What writes here: {', '.join(writers) or 'nothing'}.",
                where=("model",),
            )
        return model.writer.generate(request)

    def tokens(self, request: TextsRequest | StateRequest) -> Sequence[PromptToken]:
        """Return the first prompt of a request as the model reads it; any thread may call it.

        Raises:
            RequestError: As for `encode`.
        """
        return self._named(request.model).tokens(self.encode(request))

    def _named(self, name: str) -> ServedModel:
        if name not in self._served:
            raise RequestError(
                404,
                f"There is no model {name!r} here; the models are {', '.join(self._served)}."
                f"{suggestion(name, self._served)}",
                where=("model",),
            )
        return self._served[name]


def in_smaller_parts(
    score: Callable[[Sequence[T]], Sequence[Answers | Exception]], jobs: Sequence[T]
) -> list[Answers | Exception]:
    """Score jobs together; where that fails, in halves, so that only what is at fault fails."""
    try:
        return list(score(jobs))
    except Exception as error:  # whatever it is, it must not cost others their answers
        if len(jobs) == 1:
            return [error]
    half = len(jobs) // 2
    return [*in_smaller_parts(score, jobs[:half]), *in_smaller_parts(score, jobs[half:])]
