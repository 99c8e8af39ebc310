# Sourced by the scripts: finds what is missing, and installs it on Debian and its kin.
#
# What counts is whether a tool works, not whether its package is installed: Node.js may come
# from elsewhere, PostgreSQL from PG_CONFIG. When nothing is missing, no package tool is run.

# ---- PostgreSQL ----

# Sets PG_CONFIG to the newest PostgreSQL that is here with its server and its headers, unless
# the caller has chosen one.
choose_pg_config()
{
	local candidate
	[ -z "${PG_CONFIG:-}" ] || return 0
	for candidate in $(ls -d /usr/lib/postgresql/*/bin/pg_config 2>/dev/null | sort -Vr) \
		"$(command -v pg_config || true)"; do
		if [ -n "$candidate" ] && is_complete_postgres "$candidate"; then
			PG_CONFIG=$candidate
			return 0
		fi
	done
	return 1
}

is_complete_postgres()
{
	[ -x "$("$1" --bindir)/postgres" ] && [ -f "$("$1" --includedir-server)/postgres.h" ] &&
		[ -f "$("$1" --pgxs)" ]
}

# The major version to install: that of a server that is here, else the distribution's own.
debian_postgres_version()
{
	local server
	server=$(ls -d /usr/lib/postgresql/*/bin/postgres 2>/dev/null | sort -Vr | head -n 1)
	if [ -n "$server" ]; then
		server=${server#/usr/lib/postgresql/}
		echo "${server%%/*}"
	else
		apt-cache depends --no-recommends --no-suggests postgresql |
			sed -n 's/^ *Depends: postgresql-\([0-9]\+\)$/\1/p' | head -n 1
	fi
}

# ---- what is missing ----

has_header()
{
	echo "#include <$1>" | gcc -E -x c - >/dev/null 2>&1
}

has_fuzzer()
{
	local out status=0
	out=$(mktemp)
	echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n && 0; }' |
		clang -fsanitize=fuzzer,address -x c - -o "$out" >/dev/null 2>&1 || status=1
	rm -f "$out"
	return "$status"
}

# Prints the Debian packages for what does not work here; @postgres stands for PostgreSQL's,
# whose version is known after apt-get update only.
missing_packages()
{
	local purpose=$1
	lacks() { local package=$1; shift; "$@" >/dev/null 2>&1 || echo "$package"; }

	lacks make command -v make
	lacks perl perl -MTAP::Harness -e 1
	lacks gcc command -v gcc
	lacks libc6-dev has_header stdio.h
	lacks zlib1g-dev has_header zlib.h
	# The extension does without these two, only slower; so do other distributions' users.
	if command -v apt-get >/dev/null; then
		lacks libisal-dev has_header isa-l.h
		lacks libdeflate-dev has_header libdeflate.h
	fi
	lacks libssl-dev has_header openssl/ssl.h
	lacks libcurl4-openssl-dev command -v curl-config
	lacks @postgres choose_pg_config
	lacks nodejs command -v node
	lacks npm command -v npm
	lacks ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
	[ "$purpose" = test ] || return 0
	lacks libipc-run-perl perl -MIPC::Run -e 1
	lacks openssl command -v openssl
	lacks clang command -v clang
	# On Debian itself tools/check_versions fetches packages.
	! grep -qsx 'ID=debian' /etc/os-release || lacks debian-archive-keyring test -s /usr/share/keyrings/debian-archive-keyring.gpg
	lacks libclang-rt-dev has_fuzzer
}

# ---- installing ----

# need_packages demo|test|capture|bench: the last two for bench/capture and bench/run. For bench also sets
# nginx.
need_packages()
{
	local missing
	missing=$(missing_packages "$1")
	if [ -n "$missing" ]; then
		install_packages $missing
		missing=$(missing_packages "$1")
		[ -z "$missing" ] || die "still missing after the installation: $(echo $missing)"
	fi
	choose_pg_config || die "PG_CONFIG=$PG_CONFIG has no server or no headers"
	export PG_CONFIG
	case $1 in
		test)
			know_packages
			want_extension cron pg_cron.so 'its test is skipped'
			;;
		capture)
			know_packages
			want_extension pgq3 pgq_triggers.so 'pgq.logutriga is not measured'
			;;
		bench)
			find_nginx
			;;
	esac
}

# Packages that are all here do not mean that apt knows of any others, or of their mirror.
know_packages()
{
	[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
	compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || apt_get update
}

# want_extension PACKAGE LIBRARY CONSEQUENCE: others' extensions are used where they are to be had. Not
# every distribution has each for every version, and a PostgreSQL that was built by hand has only what
# it was given.
want_extension()
{
	local version package library=$2 consequence=$3
	version=$("$PG_CONFIG" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
	package=postgresql-$version-$1
	if [ -f "$("$PG_CONFIG" --pkglibdir)/$library" ] ||
		[ "$("$PG_CONFIG" --bindir)" != "/usr/lib/postgresql/$version/bin" ] ||
		! command -v apt-get >/dev/null; then
		return 0
	elif [ "$(id -u)" != 0 ]; then
		say "without $package, which root may install, $consequence"
		return 0
	fi
	if apt-cache show "$package" >/dev/null 2>&1; then
		say "installing $package"
		install_without_cluster "$package"
	else
		say "there is no $package here: $consequence"
	fi
}

# Sets nginx. Debian's package is not installed, which would start a web server and start it again after each
# boot: its program is unpacked below build/, and needs no more than libraries that PostgreSQL and we need, too.
find_nginx()
{
	local dir=$root/build/bench/nginx
	for nginx in "$(command -v nginx || true)" /usr/sbin/nginx "$dir/usr/sbin/nginx"; do
		! "$nginx" -v >/dev/null 2>&1 || return 0
	done
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || die "this needs nginx"
	say "unpacking nginx into ${dir#"$root"/}"
	know_packages
	rm -rf "$dir"
	mkdir -p "$dir"
	(cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download nginx) ||
		die "nginx could not be fetched: install it, or run apt-get update as root"
	dpkg-deb -x "$dir"/nginx_*.deb "$dir"
	rm -f "$dir"/nginx_*.deb
	"$nginx" -v 2>/dev/null || die "$nginx does not run: $("$nginx" -v 2>&1)"
}

install_packages()
{
	if ! command -v apt-get >/dev/null; then
		die "this needs (Debian's names; @postgres: the server and its headers): $*"
	fi
	if [ "$(id -u)" != 0 ]; then
		die "run this once as root, or install: $(debian_names "$@")"
	fi
	say "installing packages, which takes a minute or two: $*"
	apt_get update
	install_without_cluster $(debian_names "$@")
}

debian_names()
{
	local name version
	version=$(debian_postgres_version)
	for name; do
		case $name in
			@postgres) echo "postgresql-$version" "postgresql-server-dev-$version" ;;
			# Before Debian 12 it is part of clang's own dependencies.
			libclang-rt-dev) apt-cache show "$name" >/dev/null 2>&1 && echo "$name" ;;
			*) echo "$name" ;;
		esac
	done | xargs
}

# Debian's PostgreSQL package creates and starts a cluster when it is first installed, unless
# postgresql-common's configuration says no: we say so while we install, and put back what was there.
install_without_cluster()
{
	local conf=/etc/postgresql-common/createcluster.conf
	case " $* " in
		*" postgresql-"[0-9]*)
			apt_get install postgresql-common
			cp -p "$conf" "$conf.kusto_ingest"
			on_exit restore_createcluster
			echo 'create_main_cluster = false' >> "$conf"
			;;
	esac
	apt_get install "$@"
	restore_createcluster
}

restore_createcluster()
{
	local conf=/etc/postgresql-common/createcluster.conf
	[ ! -f "$conf.kusto_ingest" ] || mv "$conf.kusto_ingest" "$conf"
}

apt_get()
{
	local log status=0
	log=$(mktemp)
	DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
		--no-install-recommends "$@" >"$log" 2>&1 </dev/null || status=$?
	[ "$status" = 0 ] || tail -n 40 "$log" >&2
	rm -f "$log"
	[ "$status" = 0 ] || die "apt-get $1 failed"
}
