"""The shapes that requests and answers have in other projects; one file a project."""

from taskfit.serve.wires import classify, models, systemone

ROUTERS = (systemone.router, classify.router, models.router)
EXAMPLES = {
    "/v1/systemone": systemone.example,
    "/classify": classify.example,
    "/v1/classify": classify.example,
}
