# Sourced by bench/capture and bench/run: what the head of a report says.

# command_line COMMAND VARIABLE ...: the command with the variables that are set, to be copied.
command_line()
{
	local command=$1 name
	shift
	for name; do
		[ -z "${!name:-}" ] || command="$name='${!name}' $command"
	done
	echo "$command"
}

# say_where SETTING ...
say_where()
{
	local model memory
	model=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
	memory=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
	printf '%-12s %s\n' \
		date "$(date -u '+%Y-%m-%d %H:%M UTC'), load $(cut -d ' ' -f 1 /proc/loadavg)" \
		machine "$(nproc) cores, ${model:-$(uname -m)}, $((memory / 1024 / 1024)) GB, Linux $(uname -r | cut -d - -f 1)" \
		PostgreSQL "$("$PG_CONFIG" --version), compiled with $("$PG_CONFIG" --cflags | grep -o -- '-O[0-9s]' | tail -n 1)" \
		kusto_ingest "$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)${compression:+, with $compression}"
	printf '%-12s %s\n' \
		service "test/kusto-local, on the same machine, Node.js $("$root/test/kusto-local/bin/node" --version)${nginx:+; $("$nginx" -v 2>&1 | sed 's/^nginx version: //')}" \
		settings "$*" \
		command "$command"
}

# Which engines a library was linked with; zlib always.
compression_of()
{
	local needed
	needed=$(ldd "$1") || return 1
	case $needed in *libisal.*) echo -n 'ISA-L, ' ;; esac
	case $needed in *libdeflate.*) echo -n 'libdeflate, ' ;; esac
	echo zlib
}
