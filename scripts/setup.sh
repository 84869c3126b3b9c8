#!/bin/sh
# Installs the servers that the tests run against. It may run any number of times, and does nothing when nothing is
# missing. Without root, or where there is no apt, it says what is missing and goes on: the tests then skip by name what
# they want. None of the servers is left running: the tests start their own.
set -eu

# The C compiler is for go test -race, iproute2 and nftables for networks that lose a host. RequestTracker
# comes with 265 packages of Perl: half a minute of the whole.
packages='redis-server memcached libmemcached-tools php-cli php-fpm php-redis php-igbinary php-memcached php-memcache php-mysql mariadb-server postgresql
	gcc libc6-dev
	iproute2 nftables
	request-tracker5 rt5-db-mysql rt5-db-postgresql rt5-standalone libapache-session-perl libredis-perl'
# Applications whose sessions are moved. Others are fetched by the tests themselves, with whatever node and pip there is.
packages="$packages php-pgsql php-symfony-http-foundation
	php-illuminate-session php-illuminate-database php-illuminate-cache php-illuminate-redis php-illuminate-config
	libapache-session-browseable-perl libdbd-mysql-perl libdbd-pg-perl"
# Clients that find Redis by Sentinel or Cluster.
packages="$packages libredis-fast-perl php-nrk-predis python3-redis"
# Sessions of Ruby in Redis.
packages="$packages ruby ruby-redis-actionpack ruby-actionpack"
command -v npm >/dev/null || packages="$packages nodejs npm"
python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3-pip"
# Cassandra itself is fetched by the tests, too, and runs on this Java, which also builds an application's sessions.
packages="$packages openjdk-17-jdk-headless"
command -v mvn >/dev/null || packages="$packages maven"

say() { echo "setup: $*" >&2; }

# give_up says why not, which is an error only where the tests may skip nothing.
give_up() {
	say "$*"
	case "${CI:-}" in
	'' | 0 | false) exit 0 ;;
	*) exit 1 ;;
	esac
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
	missing=
	for program in redis-server redis-cli memcached memccapable php php-fpm mariadbd mariadb initdb psql rt-setup-database gcc node npm python3 ruby javac mvn ip nft nsenter; do
		command -v "$program" >/dev/null || missing="$missing $program"
	done
	[ -n "$missing" ] || exit 0
	give_up "this is not Debian; install by hand what the tests shall not skip:$missing (PHP with redis, igbinary, memcached, memcache, pdo_mysql and pdo_pgsql, Symfony's HttpFoundation and Laravel's Illuminate; Node; Python with pip; Java 17 and Maven; MariaDB; PostgreSQL; RequestTracker 5 with Starlet, Perl's Redis and Redis::Fast; predis; redis-actionpack)"
fi

missing=
for package in $packages; do
	case "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" in
	installed) ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || give_up "missing:$missing; as root: apt-get install --no-install-recommends$missing"

say "installing$missing"
# Packages of daemons start them when installed, unless this program answers 101 (invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@"; }
log=$(mktemp)
# RequestTracker would make a database; the tests make their own.
case "$missing" in
*request-tracker5*) echo 'request-tracker5 request-tracker5/dbconfig-install boolean false' | debconf-set-selections ;;
esac
# shellcheck disable=SC2086 # a list of words
if { apt update && apt install --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
	rm -f "$log"
	say 'done'
else
	tail -n 20 "$log" >&2
	rm -f "$log"
	give_up "could not install$missing"
fi
