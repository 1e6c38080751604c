#!/bin/sh
# Install the servers that the tests start: etcd, Consul and ZooKeeper. Does nothing when all are there.
set -eu
cd "$(dirname "$0")/.."

missing() {
    found=
    command -v etcd >/dev/null || found="$found etcd-server"
    command -v etcdctl >/dev/null || found="$found etcd-client"
    command -v consul >/dev/null || found="$found consul"
    if ! command -v java >/dev/null || ! has_jars "${ZOOKEEPER_HOME:+$ZOOKEEPER_HOME/lib}"; then
        found="$found zookeeper"
    fi
    echo "$found"
}

has_jars() {
    for jar in "${1:-/usr/share/java}"/zookeeper*.jar; do
        [ -e "$jar" ] && return
    done
    return 1
}

complain() {
    cat >&2 <<END
tests/install-servers.sh: missing:$1 (named as Debian's packages)
As root on Debian 12, this script installs them. Elsewhere:
  etcd-server, etcd-client: packages etcd-server and etcd-client of Debian and Ubuntu, or the release archives
      on the releases page of etcd-io/etcd: put etcd and etcdctl in PATH.
  consul: package consul of Debian 11, or the install page of HashiCorp's Consul: put consul in PATH.
  zookeeper: package zookeeper of Debian and Ubuntu, or the releases page of Apache ZooKeeper with any Java
      runtime: put java in PATH and set ZOOKEEPER_HOME to the unpacked directory.
END
    exit 1
}

# Run a command, and show what it said only if it failed.
quietly() {
    if ! "$@" >"$work/output" 2>&1; then
        cat "$work/output" >&2
        return 1
    fi
}

install() {
    quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

# Write the machine's own source of the main suite, with the suite of the release before.
write_older_source() {
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        # Stanzas (deb822): keep those of the main suite, with that suite alone.
        awk -v RS= '
            /(^|\n)Suites:[^\n]*[ \t]bookworm([ \t\n]|$)/ && !/(^|\n)Enabled:[ \t]*no/ {
                sub(/(^|\n)Suites:[^\n]*/, "\nSuites: bullseye")
                sub(/^\n/, "")
                print $0 "\n"
            }' "$file"
    done >"$work/sources"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -e "$file" ] || continue
        sed -En '/^deb[[:space:]].*[[:space:]]bookworm[[:space:]]/s/[[:space:]]bookworm[[:space:]].*/ bullseye main/p' "$file"
    done >"$work/list"
    for kind in sources list; do
        [ ! -s "$work/$kind" ] || cp "$work/$kind" "$older.$kind"
    done
    [ -s "$work/sources" ] || [ -s "$work/list" ]
}

remove_older_source() {
    rm -f "$older".sources "$older".list "$preferences"
}

# Debian 12 has no Consul; that of Debian 11 runs on it.
install_consul_of_bullseye() {
    write_older_source || return 1
    printf 'Package: *\nPin: release n=bullseye\nPin-Priority: -1\n\nPackage: consul\nPin: release n=bullseye\nPin-Priority: 500\n' >"$preferences"
    result=0
    { quietly apt-get update -q && install consul; } || result=1
    remove_older_source
    # Forget what that source offered.
    quietly apt-get update -q || :
    return $result
}

install_consul_from_file() {
    for file in ../shared/servers/consul_*_amd64.deb; do
        if [ -e "$file" ]; then
            install "$(realpath "$file")"
            return
        fi
    done
    return 1
}

forbid_daemons() {
    [ ! -e $policy ] || mv $policy "$work/policy-rc.d"
    forbidden=yes
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
}

clean_up() {
    remove_older_source
    if [ -e "$work/policy-rc.d" ]; then
        mv "$work/policy-rc.d" $policy
    elif [ -n "$forbidden" ]; then
        rm -f $policy
    fi
    rm -rf "$work"
}

wanted=$(missing)
[ -n "$wanted" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || ! grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release; then
    complain "$wanted"
fi

policy=/usr/sbin/policy-rc.d
older=/etc/apt/sources.list.d/aiolibkv-older
preferences=/etc/apt/preferences.d/aiolibkv-older
forbidden=
work=$(mktemp -d)
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
forbid_daemons

from_debian=
for package in $wanted; do
    [ "$package" = consul ] || from_debian="$from_debian $package"
done
if [ -n "$from_debian" ]; then
    quietly apt-get update -q
    # shellcheck disable=SC2086 # one word for each package
    install $from_debian
fi
case $wanted in
*consul*) install_consul_of_bullseye || install_consul_from_file || : ;;
esac

wanted=$(missing)
[ -z "$wanted" ] || complain "$wanted"
