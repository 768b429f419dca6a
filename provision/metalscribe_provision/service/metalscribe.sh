#!/bin/sh
# metalscribe's command line on this host: the release that serves, with the service's settings and, for root, as the
# service's user. Installed by the deploy.
set -eu

program=/opt/metalscribe/current/venv/bin/metalscribe
if [ ! -x "$program" ]; then
  echo 'metalscribe: no release is installed yet; run the deploy' >&2
  exit 1
fi

if [ "$(id -u)" -ne 0 ]; then
  case "${1:-}" in
    backup | config | jobs | keys | model | restore | serve)
      echo "metalscribe: the service's $1 belongs to its own user; use: sudo metalscribe $*" >&2
      exit 1
      ;;
  esac
  exec "$program" "$@"
fi

set -a
# shellcheck source=/dev/null
. /etc/metalscribe/metalscribe.env
set +a

# The doctor looks at what only root may see.
if [ "${1:-}" = doctor ]; then
  CREDENTIALS_DIRECTORY=/etc/metalscribe/credentials exec "$program" "$@"
fi

# What the service gets from systemd: a copy, that its user can read, of the credentials that its unit names. Others lie
# beside them that are not for this user, such as a DNS provider's, or that it must not act by, such as a former database's.
credentials=$(mktemp -d /run/metalscribe-cli.XXXXXX)
trap 'rm -rf "$credentials"' EXIT
trap 'exit 130' INT TERM HUP
chown metalscribe:metalscribe "$credentials"
names=$(sed -n 's/^LoadCredential=\([A-Za-z0-9_]*\):.*/\1/p' /etc/systemd/system/metalscribe.service)
for name in $names; do
  install -o metalscribe -g metalscribe -m 400 "/etc/metalscribe/credentials/$name" "$credentials/"
done
CREDENTIALS_DIRECTORY=$credentials HOME=/var/lib/metalscribe \
  setpriv --reuid metalscribe --regid metalscribe --clear-groups --no-new-privs -- "$program" "$@"
