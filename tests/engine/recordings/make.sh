#!/usr/bin/env bash
# Makes name.flac again: a sentence with a name that no model knows, synthesised by espeak-ng.
# Needs Debian's espeak-ng and sox.
set -euo pipefail
cd "$(dirname "$0")"
espeak-ng -v en-gb+f2 -s 145 -g 4 --stdout "Please send the invoice to Kallistryn before Friday." \
  | sox -t wav - -r 16000 -c 1 -b 16 name.flac norm -3 pad 0.3 0.5
