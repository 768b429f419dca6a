"""Releases: what of this checkout runs on a host, built there from the lock file, each in a folder of its own."""
