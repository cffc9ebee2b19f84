"""Errors that the user can correct; the command line shows them without a traceback."""


class ConfigError(ValueError):
    """A value of the configuration, or of a flag, cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint does not exist, is damaged, does not fit the model, or cannot be written."""
