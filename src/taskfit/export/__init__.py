"""Ship a finished run: merged, as a plain classifier, or as GGUF; see `export.export_run`."""
