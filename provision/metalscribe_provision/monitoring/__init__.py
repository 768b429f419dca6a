"""Exporters for Prometheus on a host, the scrape targets of an inventory, and what the host's doctor goes by."""
