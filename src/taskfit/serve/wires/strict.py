"""What all requests are read by."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A request in which a misspelt name is an error, and no value is turned into another."""

    model_config = ConfigDict(extra="forbid", strict=True)
