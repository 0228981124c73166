"""Three budgets: which methods are compared, and what that takes, said before it starts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from taskfit.errors import SettingsError
from taskfit.files import write_json_atomic, write_text_atomic
from taskfit.methods.table import DEFAULT_METHODS
from taskfit.plan.cards import find_card, names_card_at_hand
from taskfit.plan.plan import TRAINED, make_plan
from taskfit.plan.shapes import find_config
from taskfit.plan.tokens import real_workload
from taskfit.runs.prepare import prepare_data
from taskfit.runs.sources import share_sources
from taskfit.settings import RunSettings, known
from taskfit.settings_base import merge_settings
from taskfit.settings_file import settings_from_dict
from taskfit.ui.project import Project

# What a model has to beat before it is kept.
BASELINES = ("majority", "tfidf")
# What loading a model and measuring a run take beside the work that is planned (seconds).
OVERHEAD_SECONDS = 10.0
PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Budget:
    """A choice of methods.

    Attributes:
        summary: What it is for, in a sentence.
        methods: Names in `DEFAULT_METHODS`.
        seeds: Draws of each.
        num_train, max_test: Most rows to learn from and to measure on; None: all.
    """

    summary: str
    methods: tuple[str, ...]
    seeds: int = 1
    num_train: int | None = None
    max_test: int | None = None


READING = ("few-shot", "probe")
BUDGETS = {
    "quick": Budget(
        "Nothing is trained: the model is shown a few examples, and its features are read.",
        (*BASELINES, *READING),
        num_train=500,
        max_test=300,
    ),
    "careful": Budget(
        "Also trains the model, the way taskfit fit does by default.",
        (*BASELINES, *READING, "probe-minilm", "auto"),
        num_train=4000,
        max_test=1000,
    ),
    "thorough": Budget(
        "Also other ways to train it, each on three draws, so that luck is told from merit.",
        (*BASELINES, *READING, "probe-minilm", "auto", "head", "label_words"),
        seeds=3,
    ),
}


def find_budget(name: str) -> Budget:
    """Return a budget.

    Raises:
        SettingsError: If there is none of this name.
    """
    if name not in BUDGETS:
        raise SettingsError(f"There is no budget {name!r}; there are: {', '.join(BUDGETS)}.")
    return BUDGETS[name]


def write_grid(project: Project, budget: Budget) -> None:
    """Write the grid of a budget, as `taskfit compare --config` takes it."""
    grid = {
        "base": base_of(project, budget),
        "methods": {name: DEFAULT_METHODS[name] for name in budget.methods},
        "seeds": budget.seeds,
    }
    text = yaml.safe_dump(grid, sort_keys=False, allow_unicode=True)
    write_text_atomic(project.folder / "grid.yaml", text)


def base_of(project: Project, budget: Budget) -> dict[str, Any]:
    """Return the settings that all runs of a budget share; a small table is used whole.

    Raises:
        TaskfitError: If the table does not fit a task.
    """
    base = project.base()
    data: dict[str, Any] = base["data"]
    if budget.max_test is not None:
        data.setdefault("max_test", budget.max_test)
    if budget.num_train is not None and not {"num_train", "shots_per_class"} & data.keys():
        prepared = prepare_data(settings_from_dict(base))
        if len(prepared.train) + len(prepared.demonstrations) > budget.num_train:
            data["num_train"] = budget.num_train
    return base


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """What one run of a method is planned to take; 0 bytes where no language model is loaded.

    Attributes:
        seconds: None where the model's tokenizer is not on this machine yet.
        memory_bytes: The most at once.
        fits: Whether this machine has as much.
    """

    seconds: float | None
    memory_bytes: int = 0
    fits: bool = True


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What a budget is planned to take.

    Attributes:
        methods: Method -> what one run of it takes.
        num_train, num_test: Rows to learn from and to measure on.
    """

    methods: dict[str, MethodPlan]
    num_train: int
    num_test: int


def plan_budgets(project: Project) -> dict[str, BudgetPlan]:
    """Plan every method of every budget, once for the same choices.

    Raises:
        TaskfitError: If the data or the model do not allow it.
    """
    path, given = project.folder / PLAN_FILE, project.base()
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["base"] == given:
            return {name: _from_plain(plan) for name, plan in kept["budgets"].items()}
    alike: dict[str, MethodPlan] = {}
    with share_sources():
        found = {name: _plan_budget(project, budget, alike) for name, budget in BUDGETS.items()}
    if all(plan.seconds is not None for plan in alike.values()):
        plain = {name: asdict(plan) for name, plan in found.items()}
        write_json_atomic(path, {"base": given, "budgets": plain})
    return found


def _from_plain(plan: dict[str, Any]) -> BudgetPlan:
    methods = {name: MethodPlan(**found) for name, found in plan["methods"].items()}
    return BudgetPlan(**{**plan, "methods": methods})


def _plan_budget(project: Project, budget: Budget, alike: dict[str, MethodPlan]) -> BudgetPlan:
    base, methods = base_of(project, budget), {}
    for name in budget.methods:
        settings = settings_from_dict(merged(base, DEFAULT_METHODS[name]))
        key = _work(settings.resolved())
        if key not in alike:
            alike[key] = _plan(settings)
        methods[name] = alike[key]
    data = prepare_data(settings_from_dict(base))
    num_test = sum(map(len, data.evaluations.values()))
    return BudgetPlan(methods, len(data.train) + len(data.demonstrations), num_test)


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with later ones over earlier ones; none of them is changed."""
    found: dict[str, Any] = {}
    for part in parts:
        merge_settings(found, part)
    return found


def _work(settings: RunSettings) -> str:
    """Return what runs of the same time and memory share, as `taskfit plan` sees them."""
    data = settings.data.model_dump_json()
    if settings.method.name in TRAINED:
        return data + settings.adapter.model_dump_json() + settings.training.model_dump_json()
    return data + settings.method.model_dump_json()


def _plan(settings: RunSettings) -> MethodPlan:
    """Plan a run; the steps by `taskfit plan`, evaluations as passes over the held-out rows."""
    if not settings.resolved().method.reads_model:
        return MethodPlan(1.0 if settings.method.name in BASELINES else OVERHEAD_SECONDS)
    config, source = find_config(settings.model.name, revision=settings.model.revision)
    workload = real_workload(settings, config)
    if workload is None:
        return MethodPlan(None)
    card = find_card(names_card_at_hand())
    plan = make_plan(settings, card, workload, config=config, source=source)
    num_test = sum(map(len, prepare_data(settings).evaluations.values()))
    seconds = OVERHEAD_SECONDS
    # A pass that trains is at least as long as one that reads.
    one_pass = plan.time.seconds / max(1, workload.num_examples)
    if plan.memory.step is not None:
        epochs = known(plan.settings.training.epochs)
        seconds += epochs * plan.time.seconds + plan.time.before_seconds + one_pass * num_test
    else:
        learns = workload.num_examples if settings.method.name == "probe" else 0
        seconds += one_pass * (num_test + learns)
    return MethodPlan(seconds, plan.needed_bytes, plan.fits)


def describe_budgets(plans: Mapping[str, BudgetPlan]) -> list[dict[str, Any]]:
    """Return the budgets with what they are planned to take."""
    described = []
    for name, plan in plans.items():
        budget, methods = BUDGETS[name], list(plan.methods.values())
        seconds = [one.seconds for one in methods if one.seconds is not None]
        is_known = len(seconds) == len(methods)
        described.append(
            {
                "name": name,
                "summary": budget.summary,
                "methods": list(budget.methods),
                "draws": budget.seeds,
                "num_train": plan.num_train,
                "num_test": plan.num_test,
                "seconds": budget.seeds * sum(seconds) if is_known else None,
                "memory_bytes": max(one.memory_bytes for one in methods),
                "fits": all(one.fits for one in methods),
            }
        )
    return described
