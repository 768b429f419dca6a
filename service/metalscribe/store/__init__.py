"""What must survive a restart: the database, API keys, and answers kept for identical retries."""
