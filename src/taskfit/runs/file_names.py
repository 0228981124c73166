"""What the files of a run folder are called; known without importing what writes them."""

RESULT_FILE = "result.json"
SETTINGS_FILE = "settings.yaml"
DATA_FILE = "data.json"
CHECKPOINTS = "checkpoints"
# Which text stood in which set, for runs that go on from this one.
TEXTS_FILE = "texts.safetensors"
# What a run goes on from: the folder with it until the run is finished, the section of settings,
# and the entry in the record's details.
START = "start"
