"""Errors that a user can cause. Each says what was given, why it cannot work and what to do."""


class DpeerError(ValueError):
    """A problem the user can fix; the command line shows it on one screen, without a traceback.

    `module`: the part of dpeer that it is about, where the traceback does not end there: it was raised in another
    process, or by a registry."""

    module: str = ""


class DataError(DpeerError):
    """A fault in a data set: names file, row, column and a short excerpt."""


class ConfigError(DpeerError):
    """A fault in a recipe or in `--set`."""


class ClusterError(DpeerError):
    """A placement that cannot exist, or a worker that died or fell silent."""


class CheckpointError(DpeerError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class DamagedCheckpoint(CheckpointError):
    """Its files are not as they were written, or did not give back what was saved."""


class Diverged(DpeerError):
    """Numbers of the training are no longer finite. Raised by all ranks in the same step."""


class Interrupted(BaseException):
    """A signal: the run can be resumed. Like KeyboardInterrupt it passes by `except Exception`.

    `code` is the exit code of the process. It travels with the exception, as another handler than the one that took the
    signal may have to end the process.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
