"""Bundles: everything that a release needs from the internet, in one folder, for hosts that have none."""
