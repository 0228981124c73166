"""Score the same requests with lm-evaluation-harness's `HFLM.loglikelihood`."""

import time

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def hflm_scores(
    folder: str, requests: list[tuple[str, str]], dtype: str, *, batch_size: int
) -> tuple[list[float], float]:
    """Return the log-likelihood of each (context, continuation), and the seconds it took.

    The model is loaded, and one request is scored, before the clock starts.
    """
    model = HFLM(pretrained=folder, dtype=dtype, batch_size=batch_size, device="cpu")
    instances = [
        Instance(request_type="loglikelihood", doc={}, arguments=request, idx=i)
        for i, request in enumerate(requests)
    ]
    with torch.no_grad():
        model.loglikelihood(instances[:1], disable_tqdm=True)
        started = time.perf_counter()
        answers = model.loglikelihood(instances, disable_tqdm=True)
    return [float(score) for score, _ in answers], time.perf_counter() - started
