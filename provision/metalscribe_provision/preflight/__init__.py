"""Looks a host over before anything is changed on it, and refuses what the other deploys could not finish."""
