"""Durable jobs: accepted, run in turn, followed, told of by webhooks."""
