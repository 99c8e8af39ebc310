# Sourced by the scripts: the local Kusto service of test/kusto-local.

# Installs a package.json's locked dependencies, when the lock is not what is installed.
install_node_modules()
{
	local dir=$1 sum
	sum=$(sha256sum < "$dir/package-lock.json")
	if [ "$sum" = "$(cat "$dir/node_modules/.kusto_ingest" 2>/dev/null)" ]; then
		return 0
	fi
	say "installing Node.js modules in ${dir#"$root"/}"
	# npm would leave its compiled self in /tmp.
	NODE_DISABLE_COMPILE_CACHE=1 run npm --prefix "$dir" ci --no-audit --no-fund --loglevel=error >/dev/null ||
		die "npm ci failed in $dir"
	printf '%s\n' "$sum" > "$dir/node_modules/.kusto_ingest"
}

install_kusto_local()
{
	install_node_modules "$root/test/kusto-local"
}

# start_kusto_local [--stay] [option ...]: starts the service and exports the KUSTO_... variables that tests
# and psql scripts read. Unless it is to stay, it ends with us even when we are killed: its
# standard input is a pipe that only we hold open.
start_kusto_local()
{
	local ready= follow follow_pid input=/dev/null
	local output=$work/log/kusto-local.out

	if [ "${1:-}" = --stay ]; then
		shift
	else
		input=$work/kusto-local.in
		mkfifo "$input"
		set -- --exit-on-stdin-close "$@"
	fi
	exec {kusto_local_in}<>"$input"
	: > "$output"
	# A session of its own, so that Azurite is stopped with it and Ctrl-C reaches only us.
	setsid "$root/test/kusto-local/bin/kusto-local" "$@" \
		<"$input" >"$output" 2>"$work/log/kusto-local.err" {kusto_local_in}>&- &
	kusto_local_pid=$!
	on_exit stop_kusto_local

	exec {follow}< <(exec tail -n +1 -f --pid="$kusto_local_pid" "$output")
	follow_pid=$!
	IFS= read -r -t 60 -u "$follow" ready || true
	kill "$follow_pid" 2>/dev/null || true
	exec {follow}<&-
	[ -n "$ready" ] || die "kusto-local did not start: $(cat "$work/log/kusto-local.err")"
	kusto_local_variables "$ready"
}

kusto_local_variables()
{
	local assignments
	assignments=$("$root/test/kusto-local/bin/node" -e '
		const ready = JSON.parse(process.argv[1]);
		const quote = (s) => `\x27${String(s).replaceAll("\x27", "\x27\\\x27\x27")}\x27`;
		const variables = {
			KUSTO_ENGINE_URI: ready.engine,
			KUSTO_INGEST_URI: ready.ingest,
			KUSTO_LOGIN_URI: ready.login,
			KUSTO_IMDS_URI: ready.imds,
			KUSTO_CONTROL_URI: ready.control,
			KUSTO_TENANT: ready.client.tenant,
			KUSTO_CLIENT_ID: ready.client.client_id,
			KUSTO_CLIENT_SECRET: ready.client.client_secret,
		};
		for (const [name, value] of Object.entries(variables)) {
			if (value === undefined) throw new Error(`kusto-local names no ${name}`);
			console.log(`export ${name}=${quote(value)}`);
		}' "$1") || die "kusto-local's first line is not what it should be: $1"
	eval "$assignments"
}

stop_kusto_local()
{
	kill -TERM "$kusto_local_pid" 2>/dev/null
	timeout 10 tail --pid="$kusto_local_pid" -f /dev/null
	# What is left of its session, such as Azurite after a crash of the service.
	kill -KILL -- "-$kusto_local_pid" 2>/dev/null
}
