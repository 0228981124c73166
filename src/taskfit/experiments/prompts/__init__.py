"""Which wording of a task suits a model: a search on a labelled sample."""
