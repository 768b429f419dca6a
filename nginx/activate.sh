#!/bin/sh
# Let nginx's configuration point to the folder /etc/nginx/metalscribe.d/$1, if nginx accepts all of it that way.
#
# The test runs on a copy of /etc/nginx that only it sees, mounted over the real one: what is live stays untouched until it
# has passed, so that neither a reload nor a reboot ever meets a configuration that nginx does not take.
set -eu

wanted="metalscribe.d/$1"

arrange() { # the links, in the folder that is the argument
	ln -sfn "$wanted" "$1/metalscribe.new"
	mv -fT "$1/metalscribe.new" "$1/metalscribe"
	# The package's welcome page answers to every name on port 80.
	rm -f "$1/sites-enabled/default"
	ln -sfn ../metalscribe/site.conf "$1/sites-enabled/metalscribe.conf"
}

trial=$(mktemp -d -p /run metalscribe-nginx.XXXXXX)
trap 'rm -rf "$trial"' EXIT
cp -a /etc/nginx/. "$trial"
arrange "$trial"
# shellcheck disable=SC2016  # $1 is the inner shell's
unshare --mount sh -euc 'mount --bind "$1" /etc/nginx; nginx -t -q' sh "$trial"

arrange /etc/nginx
