# Sourced by the scripts: a private PostgreSQL with the extension, and a throw-away cluster of it.
#
# The extension is never installed into the system. PostgreSQL finds its directories relative to
# its own binary, so a tree of the same shape below $work, of copied binaries and links to everything
# else, is a complete installation into which `make install` may write.

build_extension()
{
	run make -C "$root" -s -j "$(jobs_at_once)" PG_CONFIG="$PG_CONFIG"
}

# Sets private_pg_config and private_bindir.
make_private_postgres()
{
	local option dir
	local tree=$work/postgres

	for option in pkglibdir sharedir includedir-server; do
		dir=$("$PG_CONFIG" "--$option")
		mkdir -p "$tree$dir"
		cp -as --no-target-directory "$dir" "$tree$dir"
	done
	dir=$("$PG_CONFIG" --bindir)
	mkdir -p "$tree$dir"
	# Copies, because a link would lead the server back to the system's directories.
	cp -L "$dir"/* "$tree$dir/"
	private_bindir=$tree$dir
	private_pg_config=$private_bindir/pg_config

	# An installed version of the extension must not be what is tested.
	rm -f "$tree$("$PG_CONFIG" --pkglibdir)"/kusto_ingest* \
		"$tree$("$PG_CONFIG" --sharedir)"/extension/kusto_ingest*
	case $("$private_pg_config" --pkglibdir) in
		"$work"/*) ;;
		*) die "$PG_CONFIG cannot be relocated" ;;
	esac
	make -C "$root" -s install PG_CONFIG="$PG_CONFIG" DESTDIR="$tree" >/dev/null
}

# Another private tree, with the library that has accidents on demand. After make_private_postgres;
# sets fault_bindir.
make_fault_postgres()
{
	local tree=$work/postgres_faults
	run make -C "$root" -s -j "$(jobs_at_once)" PG_CONFIG="$PG_CONFIG" faults
	cp -al "$work/postgres" "$tree"
	# Not through the link, which would write to the other tree.
	cp --remove-destination "$root/build/faults/kusto_ingest.so" "$tree$("$PG_CONFIG" --pkglibdir)/"
	fault_bindir=$tree$("$PG_CONFIG" --bindir)
}

# start_cluster [option=value ...]; sets PGHOST, PGPORT and PGUSER for the clients.
start_cluster()
{
	local setting
	cluster=$work/cluster
	install -d -m 755 "$work/run"
	install -d -m 700 "$cluster"
	[ "$(id -u)" != 0 ] || chown "$server_user" "$cluster" "$work/run"

	as_server_user "$private_bindir/initdb" -D "$cluster" -U postgres -A trust \
		--locale=C --encoding=UTF8 --no-sync >"$work/log/initdb.log" ||
		die "initdb failed: $(cat "$work/log/initdb.log")"
	{
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$work/run'"
		echo "fsync = off"
		echo "max_prepared_transactions = 10"
		for setting; do
			echo "${setting%%=*} = '${setting#*=}'"
		done
	} | as_server_user tee -a "$cluster/postgresql.conf" >/dev/null

	on_exit stop_cluster
	as_server_user "$private_bindir/pg_ctl" -s -w -D "$cluster" -l "$work/log/postgres.log" start ||
		die "the server did not start: $(cat "$work/log/postgres.log")"
	export PGHOST=$work/run PGPORT=5432 PGUSER=postgres
	unset PGDATABASE PGPASSWORD PGSERVICE PGOPTIONS PGSSLMODE
}

stop_cluster()
{
	[ ! -f "$cluster/postmaster.pid" ] ||
		as_server_user "$private_bindir/pg_ctl" -s -w -m immediate -D "$cluster" stop
}
