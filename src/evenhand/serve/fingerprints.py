"""The fingerprints that metadata carry, so that a client can tell what it talks to and key its cache by it."""

from __future__ import annotations

import hashlib

from evenhand.edits.artifact import StoredEdit
from evenhand.models.open_inference import named_weights, remote_fingerprints
from evenhand.models.protocol import ModelMetadata


def edited_parameters(encoder: str | None, stored: StoredEdit | None) -> dict[str, str]:
    """``fingerprint`` of the encoder; with an edit, ``edit`` and a ``fingerprint`` of both, so that no cache mixes the two up.

    Args:
        encoder: its fingerprint, None where it is not known.
        stored: the edit, if any.

    Example:
        >>> edited_parameters("0af1", None)
        {'fingerprint': '0af1'}
    """
    if stored is None:
        return {"fingerprint": encoder} if encoder else {}
    edit = {"edit": stored.fingerprint}
    return {**edit, "fingerprint": hashlib.sha256(f"{encoder} edited by {stored.fingerprint}".encode()).hexdigest()} if encoder else edit


def made_for_another(stored: StoredEdit, said: ModelMetadata) -> bool:
    """Whether an edit was trained against another encoder than the one that says this of itself.

    An edit that was trained on weights knows the encoder's fingerprint; one that was trained through a server knows what
    `evenhand.models.remote.RemoteEmbedder.fingerprint` made of its metadata. Where either side says nothing, nothing speaks against it.
    A model that edits images first is another one than its weights.
    """
    made_for = stored.facts.get("encoder")
    named = {named_weights(said), said.parameters.get("fingerprint")} - {None}
    return bool(made_for and named) and made_for not in named | remote_fingerprints(said, said.name)
