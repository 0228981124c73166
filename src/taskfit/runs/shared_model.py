"""One base model for several fits, put back after each as it was before."""

from torch import Tensor

from taskfit.methods.method import Method, TrainedMethod
from taskfit.methods.table import METHODS
from taskfit.models.load import LoadedModel
from taskfit.settings import RunSettings


class SharedModel:
    """The base model of all trials, put back after each as it was before."""

    def __init__(self, model: LoadedModel | None, settings: RunSettings) -> None:
        """Keep a copy of the weights if trials train them all.

        Args:
            model: The model, or None for methods without one.
            settings: The run's settings.
        """
        self.model = model
        self._copy: dict[str, Tensor] = {}
        if (
            model is not None
            and settings.adapter.weights == "full"
            and issubclass(METHODS[settings.method.name], TrainedMethod)
        ):
            tensors = model.tree.model.state_dict()
            self._copy = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def restore(self, method: Method | None) -> None:
        """Take a trial's adapter off, or put the weights back."""
        if self.model is None:
            return
        if isinstance(method, TrainedMethod):
            method.release()
        if self._copy:
            self.model.tree.model.load_state_dict(self._copy)
        for parameter in self.model.tree.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.model.tree.model.eval()
