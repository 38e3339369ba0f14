"""Errors a user can act on: each message names the place and the remedy."""


class AlignkitError(ValueError):
    """Something the caller can mend. The command line prints it as one line, without a traceback."""


class DataError(AlignkitError):
    """A file, row or column is not what it should be."""


class RewardError(AlignkitError):
    """A reward raised, or returned something that is not one finite score per completion."""


class ContextError(AlignkitError):
    """A prompt with its completion does not fit into the model's context."""
