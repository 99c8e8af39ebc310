# Sourced by bench/run: nginx in the place of a storage account.
#
# It reads the body of each request to its end, keeps nothing of it, and answers as Azure Storage
# does, so that what is measured is whoever sends. A second port keeps the bodies in files instead; at a third one
# late_answers.mjs says when and what to answer.

free_ports()
{
	perl -MIO::Socket::INET -e '
		my @held = map { IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die $@ } 1 .. $ARGV[0];
		print join(" ", map { $_->sockport } @held), "\n"' "$1"
}

# Sets SINK_URI, SINK_KEEP_URI, and SINK_LATE_URI with the socket SINK_LATE_SOCKET behind it; and SINK_KEPT, a file with a line for each body that was kept:
# its file, method, path, comp and blockid.
start_sink()
{
	local dir=$work/sink discard keep late
	local -a as=()
	install -d "$dir" "$dir/kept"
	[ "$(id -u)" != 0 ] || chown "$server_user" "$dir" "$dir/kept"
	read -r discard keep late < <(free_ports 3)
	export SINK_URI=http://127.0.0.1:$discard SINK_KEEP_URI=http://127.0.0.1:$keep SINK_KEPT=$dir/kept.log
	export SINK_LATE_URI=http://127.0.0.1:$late SINK_LATE_SOCKET=$dir/late
	sink_configuration "$dir" "$discard" "$keep" "$late" > "$dir/nginx.conf"

	# Our own child, and not a function's: it ends with us even when we are killed.
	[ "$(id -u)" != 0 ] || as=(--reuid "$server_user" --regid "$(id -g "$server_user")" --init-groups)
	setpriv "${as[@]}" --pdeathsig TERM env -C "$dir" \
		"$nginx" -p "$dir" -c "$dir/nginx.conf" -e "$work/log/nginx.log" 2>"$work/log/nginx.err" &
	sink_pid=$!
	on_exit stop_sink
	wait_for_sink || die "nginx did not start: $(cat "$work/log/nginx.err" "$work/log/nginx.log")"
}

# A body is read before the request goes to the server behind, which gets the headers alone.
# A block has 4 MiB at most (src/core/ingest.c), so none is written to a file.
sink_configuration()
{
	local dir=$1 discard=$2 keep=$3 late=$4
	cat <<-EOF
		daemon off;
		master_process off;
		worker_processes 1;
		pid $dir/nginx.pid;
		error_log $work/log/nginx.log warn;
		events { worker_connections 256; }
		http {
			default_type application/octet-stream;
			client_body_temp_path $dir/kept;
			proxy_temp_path $dir/proxy;
			fastcgi_temp_path $dir/fastcgi;
			uwsgi_temp_path $dir/uwsgi;
			scgi_temp_path $dir/scgi;
			access_log off;
			log_format kept '\$request_body_file \$request_method \$uri \$arg_comp \$arg_blockid';
			client_max_body_size 0;
			client_body_buffer_size 5m;
			keepalive_timeout 1h;
			keepalive_requests 1000000000;
			upstream answers { server unix:$dir/answers; keepalive 32; }
			upstream late { server unix:$dir/late; keepalive 32; }
			proxy_http_version 1.1;
			proxy_pass_request_body off;
			proxy_set_header Connection '';
			proxy_set_header Content-Length '';
			server { listen 127.0.0.1:$discard; location / { proxy_pass http://answers; } }
			server { listen 127.0.0.1:$late; location / { proxy_pass http://late; } }
			server {
				listen 127.0.0.1:$keep;
				client_body_in_file_only on;
				access_log $dir/kept.log kept;
				location / { proxy_pass http://answers; }
			}
			server {
				listen unix:$dir/answers;
				add_header ETag '"0x1"';
				add_header x-ms-request-server-encrypted true;
				location / {
					if (\$request_method = PUT) { return 201; }
					if (\$request_method = DELETE) { return 202; }
					return 404;
				}
			}
		}
	EOF
}

wait_for_sink()
{
	local deadline=$((SECONDS + 20))
	until (exec 3<>"/dev/tcp/127.0.0.1/${SINK_URI##*:}") 2>/dev/null; do
		kill -0 "$sink_pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.05
	done
}

stop_sink()
{
	kill -TERM "$sink_pid" 2>/dev/null
	timeout 10 tail --pid="$sink_pid" -f /dev/null
	kill -KILL "$sink_pid" 2>/dev/null
}
