"""What the files of a run folder are called; known without importing what writes them."""

RESULT_FILE = "result.json"
SETTINGS_FILE = "settings.yaml"
CHECKPOINTS = "checkpoints"
TEXTS_FILE = "texts.npz"
