"""nginx in front of the service: its certificate, its configuration, and the proof that it runs what was written."""
