"""The protocol of linear probes over depth: each layer of the encoder is a protocol of its own, ``layer N``."""

LAYER = "layer "


def probed_layer(protocol: str) -> int | None:
    """Return the number of the layer in ``layer N``, from 0 on; None for other protocols."""
    return int(protocol.removeprefix(LAYER)) if protocol.startswith(LAYER) else None
