#!/usr/bin/env bash
# A Docker engine of this test run's own, for a Debian machine without one. Needs root.
#
#   engine.sh prepare   fetch engine and Compose, make base images of Debian packages (once: minutes)
#   engine.sh build     start the engine on this machine's network, to build images
#   engine.sh run       start it in a network namespace of its own, to run containers
#   engine.sh stop      end it, and remove the namespace
#   engine.sh env       print what a shell needs to use it
#
# No registry is asked. The base images stand under the tags that deploy/Dockerfile and
# deploy/compose.yaml name, but are Debian's packages: what is built on them shows that our part
# works, not the real base. Everything is kept in var/containers; nothing is installed but runc and
# iptables, and no rule, bridge or forwarding is set outside the namespace.
set -euo pipefail
cd "$(dirname "$0")/../.."

KEEP=$PWD/var/containers
ROOT=$KEEP/root # where packages are unpacked
NAME=iw$(printf %s "$PWD" | cksum | cut -c1-6)
RUN=/run/$NAME
SUITE=forky # the Debian release with the Python of the Dockerfile; its mirror may be a snapshot
COMPOSE_SUITE=trixie # the Compose that works with bookworm's engine
PYTHON_IMAGE=$(sed -n 's/^ARG PYTHON_IMAGE=//p' deploy/Dockerfile)
REDIS_IMAGE=$(grep -o 'valkey/valkey:[^}]*' deploy/compose.yaml)

export PATH=$ROOT/usr/bin:$ROOT/usr/sbin:$PATH
export DOCKER_HOST=unix://$RUN/docker.sock DOCKER_CONFIG=$KEEP/config

prepare() {
  mkdir -p "$ROOT" "$KEEP/config/cli-plugins"
  need_packages mmdebstrap runc iptables iproute2
  if [[ ! -e $KEEP/engine.done ]]; then
    fetch bookworm docker.io containerd tini
    fetch $COMPOSE_SUITE docker-compose
    ln -sf "$ROOT/usr/libexec/docker/cli-plugins/docker-compose" "$KEEP/config/cli-plugins/docker-compose"
    touch "$KEEP/engine.done"
  fi
  if [[ ! -e $KEEP/base.tar ]]; then
    rm -rf "$KEEP/base"
    mmdebstrap --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
      --include=python3,python3-venv,ca-certificates,valkey-server,valkey-tools \
      $SUITE "$KEEP/base" "$(source_line $SUITE)"
    cp /etc/ssl/certs/ca-certificates.crt "$KEEP/base/etc/ssl/certs/"
    ln -s /usr/bin/python3 "$KEEP/base/usr/local/bin/python"
    install -d -o "$(owner valkey 3)" -g "$(owner valkey 4)" "$KEEP/base/data"
    tar -C "$KEEP/base" --exclude='./dev/*' -cf "$KEEP/base.new" .
    rm -rf "$KEEP/base"
    mv "$KEEP/base.new" "$KEEP/base.tar"
  fi
}

owner() { # NAME FIELD: of the base's user
  awk -F: -v name="$1" -v field="$2" '$1 == name { print $field }' "$KEEP/base/etc/passwd"
}

need_packages() {
  local missing=()
  for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  ((${#missing[@]} == 0)) && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

source_line() { # SUITE
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $1 main"
}

fetch() { # SUITE PACKAGE...: unpack packages of a Debian release, without installing them
  local suite=$1 apt=$KEEP/apt-$1
  shift
  mkdir -p "$apt/lists/partial" "$apt/archives/partial"
  source_line "$suite" >"$apt/sources.list"
  local options=(-qq -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  (cd "$apt" && apt-get "${options[@]}" download "$@")
  for file in "$apt"/*.deb; do dpkg -x "$file" "$ROOT"; done
}

start() { # COMMAND...: what comes before dockerd; its options in OPTIONS
  mkdir -p "$RUN"
  "$@" dockerd --data-root "$KEEP/data" --exec-root "$RUN/exec" --pidfile "$RUN/docker.pid" \
    --host "$DOCKER_HOST" --storage-driver overlay2 --init-path "$ROOT/usr/bin/tini-static" \
    --userland-proxy-path "$ROOT/usr/sbin/docker-proxy" --ip-forward=false "${OPTIONS[@]}" \
    </dev/null >"$KEEP/dockerd.log" 2>&1 &
  for _ in {1..150}; do
    docker version >/dev/null 2>&1 && return
    sleep 0.2
  done
  tail -20 "$KEEP/dockerd.log" >&2
  return 1
}

build() {
  stop
  OPTIONS=(--bridge=none --iptables=false --ip6tables=false)
  start env
  docker image inspect "$PYTHON_IMAGE" >/dev/null 2>&1 || docker import \
    -c 'ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin' \
    -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' "$KEEP/base.tar" "$PYTHON_IMAGE" >/dev/null
  docker image inspect "$REDIS_IMAGE" >/dev/null 2>&1 || docker tag "$PYTHON_IMAGE" "$REDIS_IMAGE"
}

run() {
  OPTIONS=(--bip 10.88.0.1/24)
  stop
  ip netns add "$NAME"
  ip -n "$NAME" link set lo up
  # nsenter and not `ip netns exec`, which hides the cgroups.
  start nsenter "--net=/run/netns/$NAME"
}

stop() {
  if [[ -e $RUN/docker.pid ]]; then
    local pid
    pid=$(<"$RUN/docker.pid")
    kill "$pid" 2>/dev/null || true
    for _ in {1..150}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
  fi
  for mount in $(awk -v run="$RUN/" 'index($2, run) == 1 { print $2 }' /proc/mounts | sort -r); do
    umount "$mount" || true
  done
  rm -rf "$RUN"
  ip netns delete "$NAME" 2>/dev/null || true
}

case ${1-} in
prepare | build | run | stop) "$1" ;;
env) printf 'export PATH=%q DOCKER_HOST=%q DOCKER_CONFIG=%q NETNS=%q\n' "$PATH" "$DOCKER_HOST" "$DOCKER_CONFIG" "/run/netns/$NAME" ;;
*)
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
