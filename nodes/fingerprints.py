"""What the host compares to tell whether a node has to run again."""

from uuid import uuid4


def unlike_any_other() -> str:
    """A fingerprint that no other run has: the host runs the node again.

    NaN would do too, but the host writes fingerprints into the prompt that it saves in images, and JSON has no NaN.
    """
    return uuid4().hex
