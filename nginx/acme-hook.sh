#!/bin/sh
# certbot runs this after it has renewed a certificate; nginx reads it anew.
set -eu

[ "$RENEWED_LINEAGE" = /etc/letsencrypt/live/metalscribe ] || exit 0
systemctl reload nginx.service
