"""The Whisper model of a host: downloaded there or brought to it, pinned, verified by SHA-256."""
