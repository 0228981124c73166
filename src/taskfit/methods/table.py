"""The table of methods: literally."""

from taskfit.methods.distill import Distill
from taskfit.methods.encoder import Encoder
from taskfit.methods.head import Head
from taskfit.methods.in_context import InContext
from taskfit.methods.knn import NearestNeighbors
from taskfit.methods.label_text import LabelText
from taskfit.methods.label_words import LabelWords
from taskfit.methods.majority import Majority
from taskfit.methods.method import Method
from taskfit.methods.probe import Probe
from taskfit.methods.remote import Remote
from taskfit.methods.tfidf import Tfidf

METHODS: dict[str, type[Method]] = {
    "in_context": InContext,
    "label_words": LabelWords,
    "head": Head,
    "label_text": LabelText,
    "distill": Distill,
    "probe": Probe,
    "knn": NearestNeighbors,
    "majority": Majority,
    "tfidf": Tfidf,
    "encoder": Encoder,
    "remote": Remote,
}
