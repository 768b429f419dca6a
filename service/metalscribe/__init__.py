"""metalscribe: a private, API-keyed speech-to-text service on your own GPU."""
