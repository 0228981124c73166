"""The settings of a search for settings."""

from typing import Annotated, Any, Literal

from pydantic import Field

from taskfit.settings_base import Section, as_tried
from taskfit.yaml_text import ReadBy


class SearchSettings(Section):
    """A search for settings on the validation set, before the run itself; needs optuna."""

    trials: int = Field(default=0, ge=0)
    """Trials, the settings as given being the first. 0: no search, unless `budget_seconds` is set;
    then as many as fit."""
    budget_seconds: float | None = Field(default=None, gt=0)
    """No trial is started after this time in the search (seconds). None: no limit."""
    space: Annotated[dict[str, Any], ReadBy(as_tried)] = Field(default_factory=dict)
    """Setting -> what to try, in place of the method's own space: `[low, high]` is a range, any
    other list are choices; {low: 1, high: 9, log: true} and {choices: [4, 8]} say so outright. A
    range whose ends differ tenfold or more is searched by its logarithm. Any setting of training,
    adapter, method and task that leaves data and base model as they are, and `template`: names of
    wordings, as `taskfit prompts` shows them, `as given` among them."""
    pruner: Literal["median", "halving", "none"] = "median"
    """Which trials end early, judged at each validation. median: those below the median of earlier
    trials; halving: all but the best quarter of those that came so far (ASHA); none."""

    @property
    def requested(self) -> bool:
        """Return whether to search."""
        return self.trials > 0 or self.budget_seconds is not None
