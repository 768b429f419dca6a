"""The service on a host: its unit, its settings, its credentials, and the release that serves."""
