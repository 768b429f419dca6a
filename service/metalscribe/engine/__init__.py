"""Speech to text: from a recording's samples to a transcript, chunks of all requests decoded together."""
