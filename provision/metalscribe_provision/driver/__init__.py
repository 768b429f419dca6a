"""Gives a host the NVIDIA driver that suits its cards, from its own distribution, and keeps it from changing unasked."""
