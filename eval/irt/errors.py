"""What can go wrong between ratings and draws, and a user can mend."""

from dpeer.errors import DpeerError


class IrtError(DpeerError):
    """Ratings that the model cannot be fitted to, no usable CmdStan, or a sampler that failed."""
