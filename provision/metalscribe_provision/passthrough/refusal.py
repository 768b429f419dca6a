"""Why a host is left as it is."""


class Refused(ValueError):
    """The host cannot have what its operator wants; the text says why and what would help. Nothing was changed."""
