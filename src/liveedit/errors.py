"""What a user can cause and mend. The command line prints the sentence and exits with its code."""

import errno


class LiveEditError(Exception):
    """One sentence: what was got, what is allowed, the next step."""

    exit_code = 1


class UsageError(LiveEditError):
    """The call itself is wrong: an option, a prompt, a path that cannot be."""

    exit_code = 2


class BundleError(LiveEditError):
    """A bundle or plan is missing, changed, or was made for something else."""


class VideoError(LiveEditError):
    """A video cannot be read or written."""


class BackendError(LiveEditError):
    """The requested engine backend is not here or cannot run this bundle."""


class CheckpointError(LiveEditError):
    """A checkpoint does not hold exactly the tensors its configuration names."""


class StreamError(LiveEditError):
    """A stream cannot go on; what came out before is good."""


class DeviceError(BackendError):
    """A device call failed. The stream that made it is over; what it held was freed."""


def disk_full(error: OSError) -> bool:
    """Whether a disk, or the user's share of it, has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def system_refusal(error: OSError) -> str:
    """What the operating system refused, and the next step, as a sentence."""
    what = str(error.strerror or error)
    where = f"{error.filename}: " if error.filename else ""
    step = "Free space" if disk_full(error) else "Check that path and its permissions"
    return f"{where}{what}. {step} and run the same command again."
