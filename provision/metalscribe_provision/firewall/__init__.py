"""The host's packet filter: a table of our own in nftables, beside whatever else is there."""
