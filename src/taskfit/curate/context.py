"""What steps share while they run."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from taskfit.curate.embed import Embedder, Vectors
from taskfit.errors import SettingsError
from taskfit.screen import Screen


@dataclass(slots=True)
class Context:
    """What steps share.

    Attributes:
        tokenizer: Of the target model.
        seed: Of everything that is drawn.
        screen: Shows progress.
        facts: What a step found out beside its verdicts, for the data card; emptied between steps.
    """

    tokenizer: PreTrainedTokenizerBase
    seed: int
    screen: Screen
    facts: dict[str, Any] = field(default_factory=dict)
    _embedders: dict[str, Embedder] = field(default_factory=dict)

    def embed(self, texts: Sequence[str], encoder: str) -> Vectors:
        """Return the vectors of texts, (N, D); an encoder is loaded once."""
        if encoder not in self._embedders:
            self._embedders[encoder] = Embedder(encoder)
        with self.screen.progress(f"embedding with {encoder}", len(set(texts))) as advance:
            return self._embedders[encoder].embed(texts, advance=advance)


def need_package(module: str, what: str) -> None:
    """Raise where a package of the extra `curate` is absent.

    Args:
        module: The module it is imported as.
        what: What needs it.

    Raises:
        SettingsError: Saying how to install it.
    """
    if importlib.util.find_spec(module) is None:
        raise SettingsError(
            f"{what} needs the package {module}, which is not installed: "
            "pip install 'taskfit[curate]', or leave the step out."
        )
