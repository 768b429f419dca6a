#!/bin/sh
# Collects what helps to understand a GPU host from afar, into one archive: collect.sh HOURS ARCHIVE
#
# Reads only. Nothing out of the state directory (uploads, transcripts, the database), no credential, no private key; what
# the programs print is checked for those again on the machine that fetches the archive (scrub.py). Every file begins with
# its command and ends with the exit status; a program that is missing or hangs costs its own file only.
set -eu
umask 077

hours=$1
archive=$2
limit=20000000 # bytes of one file: its end, which is the latest
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir "$root/support"

# capture FILE COMMAND [ARGUMENT…]
capture() {
  file=$root/support/$1
  shift
  {
    printf '$ %s\n' "$*"
    status=0
    timeout 180 "$@" 2>&1 </dev/null || status=$?
    printf '\n[exit status %s]\n' "$status"
  } | tail -c "$limit" >>"$file"
}

# gather FILE FUNCTION, for what takes more than one command
gather() {
  "$2" >"$root/support/$1" 2>&1 || printf '[exit status %s]\n' "$?" >>"$root/support/$1"
}

# Dates, names and serial numbers of the certificates; openssl prints nothing else of a file.
certificates() {
  find /etc/metalscribe/tls /etc/letsencrypt/live -name '*.pem' -o -name '*.crt' 2>/dev/null | sort |
    while read -r certificate; do
      if text=$(openssl x509 -in "$certificate" -noout -subject -issuer -serial -dates -ext subjectAltName 2>/dev/null); then
        printf '%s\n%s\n\n' "$certificate" "$text"
      fi
    done
}

kernel_messages() {
  journalctl --dmesg --since "-7d" --no-pager --output short-iso |
    grep -Ei 'NVRM|Xid|nvidia|nouveau|out of memory|oom-kill|segfault|I/O error' || echo 'none in seven days'
}

packages() {
  dpkg-query -W -f '${binary:Package} ${Version} ${db:Status-Status}\n' |
    grep -Ei 'nvidia|cuda|cudnn|nginx|certbot|nftables|linux-image|linux-headers|^systemd |^python3 |^openssl |exporter|datacenter-gpu'
}

since="-${hours}h"

capture system.txt uname -a
capture system.txt cat /etc/os-release
capture system.txt uptime
capture system.txt systemctl --failed --no-pager
capture system.txt systemctl list-timers --no-pager
capture system.txt ss -Hltnp
capture resources.txt df -h
capture resources.txt df -i
capture resources.txt free -m
capture resources.txt ps -eo pid,user,stat,etime,rss,pcpu,comm --sort -rss

capture doctor.txt /usr/local/bin/metalscribe doctor --json
capture settings.txt /usr/local/bin/metalscribe config --json
capture release.txt /opt/metalscribe/bin/metalscribe-release status --json
capture release.txt ls -lR --time-style=long-iso /etc/metalscribe
capture release.txt ls -l --time-style=long-iso /opt/metalscribe /opt/metalscribe/releases /var/lib/metalscribe /var/lib/metalscribe/models

capture unit.txt systemctl cat --no-pager metalscribe.service metalscribe.slice
capture unit.txt systemctl status --no-pager --lines 0 metalscribe.service
capture unit.txt systemctl show --no-pager metalscribe.service
capture unit-security.txt systemd-analyze security --no-pager metalscribe.service
capture journal-metalscribe.txt journalctl --unit metalscribe.service --since "$since" --no-pager --output short-iso-precise
capture journal-nginx.txt journalctl --unit nginx.service --since "$since" --no-pager --output short-iso-precise

capture nginx.txt nginx -V
capture nginx.txt nginx -T
capture nginx-errors.txt tail -n 2000 /var/log/nginx/error.log
capture firewall.txt nft list ruleset
gather certificates.txt certificates

capture gpu.txt nvidia-smi -q
capture gpu.txt lspci -nnk -d 10de:
capture gpu.txt sh -c 'cat /proc/driver/nvidia/version /sys/module/nvidia/version; ls -l /dev/nvidia*'
gather kernel.txt kernel_messages
gather packages.txt packages
capture libraries.txt /opt/metalscribe/current/venv/bin/python -c '
import importlib.metadata as metadata
print(*sorted(f"{found.name} {found.version}" for found in metadata.distributions()), sep="\n")'

tar -czf "$archive" -C "$root" support
