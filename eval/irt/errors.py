"""What can go wrong between ratings and draws, and a user can mend."""

from dpeer.errors import DpeerError


class IrtError(DpeerError):
    """Ratings that the model cannot be fitted to, no usable CmdStan, or a sampler that failed."""


class SamplerError(IrtError):
    """The machine did not let the sampler work: no memory, no room on a disk, a chain that was killed."""
