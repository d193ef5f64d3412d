"""Readout: from fixations to the tokens, coordinates and masks of a downstream model.

The names are exported by ``autogaze_client``.
"""
