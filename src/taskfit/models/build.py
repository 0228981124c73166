"""Models of transformers, built by one thread at a time."""

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Model = TypeVar("_Model")
_BUILDING = threading.RLock()


def build(make: Callable[_Given, _Model], *args: _Given.args, **options: _Given.kwargs) -> _Model:
    """Call `from_pretrained` or `from_config` of transformers while no other thread does.

    While it builds a model, transformers exchanges methods of its classes for the whole process: a
    model that another thread builds meanwhile has its head apart from the embeddings, and where two
    loads overlap, so has every model until the process ends (the later `no_tie_weights` puts back
    what the earlier one had put there).
    """
    with _BUILDING:
        return make(*args, **options)
