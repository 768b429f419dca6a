#!/bin/sh
# Builds a release on this host, complete or not at all. Run by the deploy, as root:
#
#   build-release.sh ROOT INCOMING ID PYTHON UV_VERSION USER SOURCE
#
#   ROOT        /opt/metalscribe; the release becomes ROOT/releases/ID
#   INCOMING    what the deploy brought: requirements.txt, release.json and metalscribe's wheel
#   PYTHON      the interpreter's path
#   UV_VERSION  such as 0.13.8
#   USER        whom the release is tried out as, without root's rights
#   SOURCE      index: packages come from the package index, uv as INCOMING/bootstrap.txt pins it; bundle: from INCOMING/wheels
#
# release.json is written last and makes the release complete. A build that was cut off is thrown away.
set -eu
umask 022

root=$1 incoming=$2 id=$3 python=$4 uv_version=$5 user=$6 source=$7
release=$root/releases/$id
venv=$release/venv
uv=$root/uv-$uv_version/uv
# uv's cache and the releases share their files (hard links), so an upgrade downloads and stores only what is new.
cache=$root/cache
cache_limit_mb=4096

die() {
	echo "$*" >&2
	exit 1
}

# A build whose deploy was killed may still run.
exec 9>"$root/releases/.lock"
flock --wait 900 9 || die "another build has been running on this host for 15 minutes; look at: ps -ef | grep build-release"

if [ -e "$release/release.json" ]; then
	exit 0
fi
for unfinished in "$root"/releases/*/; do
	[ -e "$unfinished/release.json" ] || rm -rf "$unfinished"
done

rm -rf "$incoming.cache" "$incoming.bootstrap"

install_uv() {
	rm -rf "$root"/uv-*
	mkdir "${uv%/*}.unfinished"
	if [ "$source" = bundle ]; then
		"$python" -I - "$incoming"/wheels/uv-"$uv_version"-*.whl "${uv%/*}.unfinished/uv" <<-'END'
			import os, sys, zipfile

			_, wheel, target = sys.argv
			with zipfile.ZipFile(wheel) as archive:
			    (member,) = (name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
			    with open(target, "wb") as file:
			        file.write(archive.read(member))
			os.chmod(target, 0o755)
		END
	else
		"$python" -m venv "$incoming.bootstrap"
		"$incoming.bootstrap/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --require-hashes \
			--only-binary :all: --no-deps -r "$incoming/bootstrap.txt" ||
			die "uv could not be installed from the package index; for a host without internet there is bundle="
		install -m 755 "$incoming.bootstrap/bin/uv" "${uv%/*}.unfinished/uv"
	fi
	"${uv%/*}.unfinished/uv" --version >/dev/null || die "uv $uv_version does not run on this host"
	mv "${uv%/*}.unfinished" "${uv%/*}"
}

[ -x "$uv" ] || install_uv

export UV_CACHE_DIR="$cache" UV_LINK_MODE=hardlink UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1 UV_NO_PROGRESS=1
if [ "$source" = bundle ]; then
	export UV_CACHE_DIR="$incoming.cache" UV_OFFLINE=1
	set -- --no-index --find-links "$incoming/wheels"
else
	set --
	# Behind a company's proxy the system's certificates are the ones that work.
	if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
		export UV_SYSTEM_CERTS=1
	fi
	if [ -d "$cache" ] && [ "$(du -sm "$cache" | cut -f1)" -gt "$cache_limit_mb" ]; then
		"$uv" --quiet cache clean
	fi
fi

mkdir "$release"
"$uv" --quiet venv --python "$python" --no-managed-python "$venv"
export VIRTUAL_ENV="$venv"
# Wheels alone, since nothing is ever built here; compiled, since the service cannot write beside its modules.
"$uv" --quiet pip install --compile-bytecode --require-hashes --only-binary :all: --no-deps "$@" -r "$incoming/requirements.txt" ||
	die "the release's requirements could not be installed (see above); for a host without internet there is bundle="
"$uv" --quiet pip install --compile-bytecode --offline --no-index --no-deps "$incoming"/metalscribe-*.whl
"$uv" --quiet pip check
rm -f "$venv/.lock"

# What is large and the same in another release is stored once. Not the modules: their bytecode is bound to their times.
"$venv/bin/python" -I - "$root/releases" "$id" <<'END'
import filecmp, os, sys

_, releases, new = sys.argv
others = [entry.path for entry in os.scandir(releases) if os.path.exists(entry.path + "/release.json")]
for folder, _, names in os.walk(os.path.join(releases, new)):
    for path in (os.path.join(folder, name) for name in names):
        status = os.lstat(path)
        if os.path.islink(path) or path.endswith((".py", ".pyc")) or status.st_size < 65536:
            continue
        for other in others:
            twin = other + path[len(os.path.join(releases, new)) :]
            if os.path.islink(twin) or not os.path.isfile(twin) or os.path.samefile(path, twin):
                continue
            if os.stat(twin).st_mode == status.st_mode and filecmp.cmp(path, twin, shallow=False):
                os.link(twin, path + ".twin")
                os.replace(path + ".twin", path)
                break
END

# Proves that the service's user may read and run it, and that the native libraries find what they need.
cd /
runuser -u "$user" -- "$venv/bin/metalscribe" --version >/dev/null || die "the new release does not start"
# ONNX Runtime reports to its maker otherwise.
runuser -u "$user" -- env ORT_DISABLE_TELEMETRY=1 "$venv/bin/python" -I -c 'import av, ctranslate2, faster_whisper, onnxruntime, uvicorn' ||
	die "the new release does not run on this host: a native library cannot be loaded (see above)"

"$venv/bin/python" -I - "$incoming/release.json" "$release/.release.json" <<'END'
import json, os, platform, sys, time

_, known, target = sys.argv
with open(known, encoding="utf-8") as file:
    release = json.load(file)
release["python"] = platform.python_version()
release["built_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
with open(target, "w", encoding="utf-8") as file:
    json.dump(release, file, indent=2)
    file.write("\n")
END
# On the disk before it counts: after a power cut there is a whole release or none.
sync -f "$release"
mv "$release/.release.json" "$release/release.json"
sync -f "$release"
