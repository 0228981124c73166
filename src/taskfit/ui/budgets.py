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
from taskfit.settings import RunSettings, known
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
    """

    summary: str
    methods: tuple[str, ...]
    seeds: int = 1


READING = ("few-shot", "probe")
BUDGETS = {
    "quick": Budget(
        "Nothing is trained: the model is shown a few examples, and its features are read.",
        (*BASELINES, *READING),
    ),
    "careful": Budget(
        "Also trains the model, the way taskfit fit does by default.",
        (*BASELINES, *READING, "probe-minilm", "auto"),
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
        "base": project.base(),
        "methods": {name: DEFAULT_METHODS[name] for name in budget.methods},
        "seeds": budget.seeds,
    }
    text = yaml.safe_dump(grid, sort_keys=False, allow_unicode=True)
    write_text_atomic(project.folder / "grid.yaml", text)


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


def plan_methods(project: Project) -> dict[str, MethodPlan]:
    """Plan every method of any budget, once for the same choices.

    Raises:
        TaskfitError: If the data or the model do not allow it.
    """
    path, given = project.folder / PLAN_FILE, project.base()
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["base"] == given:
            return {name: MethodPlan(**plan) for name, plan in kept["methods"].items()}
    names = dict.fromkeys(name for budget in BUDGETS.values() for name in budget.methods)
    alike: dict[str, MethodPlan] = {}
    found = {}
    for name in names:
        settings = project.settings(**DEFAULT_METHODS[name])
        key = _work(settings.resolved())
        if key not in alike:
            alike[key] = _plan(settings)
        found[name] = alike[key]
    if all(plan.seconds is not None for plan in found.values()):
        plain = {name: asdict(plan) for name, plan in found.items()}
        write_json_atomic(path, {"base": given, "methods": plain})
    return found


def _work(settings: RunSettings) -> str:
    """Return what runs of the same time and memory share, as `taskfit plan` sees them."""
    if settings.method.name in TRAINED:
        return settings.adapter.model_dump_json() + settings.training.model_dump_json()
    return settings.method.model_dump_json()


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


def describe_budgets(plans: Mapping[str, MethodPlan]) -> list[dict[str, Any]]:
    """Return the budgets with what they are planned to take."""

    def seconds_of(budget: Budget) -> float | None:
        found = [plans[method].seconds for method in budget.methods]
        known_ones = [seconds for seconds in found if seconds is not None]
        return budget.seeds * sum(known_ones) if len(known_ones) == len(found) else None

    return [
        {
            "name": name,
            "summary": budget.summary,
            "methods": list(budget.methods),
            "draws": budget.seeds,
            "seconds": seconds_of(budget),
            "memory_bytes": max(plans[method].memory_bytes for method in budget.methods),
            "fits": all(plans[method].fits for method in budget.methods),
        }
        for name, budget in BUDGETS.items()
    ]
