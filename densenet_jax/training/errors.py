"""Errors that are the user's to mend; the command line shows them without a traceback."""


class ConfigError(ValueError):
    """A value of the configuration that cannot be used."""


class CheckpointError(ValueError):
    """There is no such checkpoint, or it does not fit."""
