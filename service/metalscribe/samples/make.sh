#!/usr/bin/env bash
# Makes sample.flac again: speech synthesised by espeak-ng, so that the project ships nobody's voice.
# Needs Debian's espeak-ng and sox.
set -euo pipefail
cd "$(dirname "$0")"
text="Good morning. This recording was made by a computer. The weather is fine today, and the train leaves at \
seven o'clock. Every word of it stays on your own machine."
espeak-ng -v en-gb+f2 -s 145 -g 4 --stdout "$text" | sox -t wav - -r 16000 -c 1 -b 16 sample.flac norm -3 pad 0.3 0.5
printf '%s\n' "$text" > sample.txt
