"""Memory and time before anything is downloaded."""
