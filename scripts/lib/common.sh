# Sourced by the scripts: where things are, messages, and cleaning up.
#
# Everything that a script starts is below $work, a temporary directory, and is stopped by a
# function on the cleanup list. The list runs, last entry first, however the script ends.

set -euo pipefail
umask 022

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
export LC_ALL=C.UTF-8

say()
{
	if [ -t 1 ]; then
		printf '\e[1m== %s\e[0m\n' "$*"
	else
		printf '== %s\n' "$*"
	fi
}

die()
{
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# ---- cleaning up ----

cleanup_list=()

on_exit()
{
	cleanup_list=("$1" "${cleanup_list[@]}")
}

run_cleanup()
{
	local status=$? step
	# A second Ctrl-C must not leave half of it.
	trap '' INT TERM HUP PIPE
	trap - EXIT
	set +e
	for step in "${cleanup_list[@]}"; do
		"$step" >&2
	done
	exit "$status"
}

# A signal to this script takes effect at once, where bash would first wait for the end of a
# foreground command: long commands run in a session of their own, which is told to end, and
# cleans up, before we do. (Background commands of bash ignore SIGINT, so it gets SIGTERM.)

running=
trap run_cleanup EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'interrupted 129' HUP
# The reader of our output is gone: bash would die on the spot.
trap 'interrupted 141' PIPE

run()
{
	local status=0
	setsid "$@" <&0 &
	running=$!
	wait "$running" || status=$?
	running=
	return "$status"
}

interrupted()
{
	trap '' INT TERM HUP PIPE
	if [ -n "$running" ]; then
		kill -TERM -- "-$running" 2>/dev/null || true
		wait "$running" || true
	fi
	exit "$1"
}

# ---- the temporary directory, and the user who owns servers ----

make_work()
{
	work=$(mktemp -d /tmp/kusto_ingest.XXXXXX)
	chmod 755 "$work"
	on_exit remove_work
	install -d "$work/home" "$work/log"
	[ "$(id -u)" != 0 ] || chown "$server_user" "$work/home" "$work/log"
}

remove_work()
{
	rm -rf "$work"
}

# PostgreSQL refuses to run as root. Called when the packages are there, which bring the user.
choose_server_user()
{
	server_user=$(id -un)
	[ "$(id -u)" = 0 ] || return 0
	server_user=postgres
	id postgres >/dev/null 2>&1 || server_user=nobody
}

# Runs it in $server_directory, or in $work: our own directory may be closed to that user.
as_server_user()
{
	if [ "$(id -u)" = 0 ]; then
		setpriv --reuid "$server_user" --regid "$(id -g "$server_user")" --init-groups \
			env -C "${server_directory:-$work}" HOME="$work/home" USER="$server_user" LOGNAME="$server_user" "$@"
	else
		"$@"
	fi
}

# Counting processors of a machine that others use, too.
jobs_at_once()
{
	local n
	n=$(nproc)
	echo $((n < 8 ? n : 8))
}
