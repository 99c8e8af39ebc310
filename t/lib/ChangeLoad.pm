# ChangeLoad: random transactions from several sessions on tables whose changes are captured.
#
#   my $load = ChangeLoad->new($pg, seed => 17, sessions => 8, rounds => 10, transactions => 30);
#   $load->create_tables;                           # and what writes down their changes: table audit
#   ...                                             # capture them
#   $load->run(sub { my ($done, $all) = @_; ... }); # called while it runs, with the rounds done
#   is_deeply($load->unexpected, {}, 'no error but those of conflicts');
#
# All sessions work on the same few keys, so that they meet. Statements that fail are part of it: by
# conflicts, deadlocks and lock timeouts, and by the end of the server. What is rolled back on purpose
# has a tag that says so: ABORTED (a transaction) or UNDONE (a part of one).
#
# The same seed gives the same statements, but not the same interleaving.
package ChangeLoad;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use Digest::MD5 qw(md5_hex);
use File::Path qw(make_path);
use POSIX ();
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time);

# The same few keys for everybody.
use constant KEYS => 30;

# What a session may run into: unique and foreign keys, the check of tree, conflicts, deadlocks, lock timeouts, a failed
# transaction and the savepoints that it has not set, a server that ends or has not started yet.
my %expected = map { $_ => 1 } qw(23505 23503 23514 21000 40001 40P01 55P03 25P02 57P01 57P02 57P03 3B001);

# columns: besides the key, v (counted up by each update) and tag.
my @tables = (
	{
		name => 'plain',
		key => ['id'],
		columns => {
			amount => 'numeric(12,2)', at => 'timestamptz', ref => 'uuid', doc => 'jsonb',
			ratio => 'float8', flag => 'boolean', body => 'text'
		},
	},
	{ name => 'bare', key => [ 'id', 'part' ], columns => { body => 'text', doc => 'jsonb' } },
	{ name => 'parted', key => [ 'id', 'part' ], columns => { amount => 'numeric(12,2)', body => 'text' } },
	{ name => 'olds', key => ['id'], columns => { amount => 'numeric(12,2)', doc => 'jsonb', body => 'text' } },
	{ name => 'nested', key => ['id'], columns => { again => 'integer', body => 'text' } },
	{ name => 'tree', key => ['id'], columns => { parent => 'integer', body => 'text' } },
	{ name => 'swapped', key => ['id'], columns => { body => 'text' } },
	{ name => 'late', key => ['id'], columns => { doc => 'jsonb', body => 'text' } });

sub tables { return map { $_->{name} } @tables }
sub key { my ($class, $name) = @_; return @{ _table($name)->{key} } }

sub columns { my ($class, $name) = @_; return (@{ _table($name)->{key} }, 'v', 'tag', sort keys %{ _table($name)->{columns} }) }
sub type { my ($class, $name, $column) = @_; return (_table($name)->{columns}{$column} // ($column eq 'tag' ? 'text' : 'integer')) =~ s/\(.*//r }

sub _table
{
	my ($name) = @_;
	my ($table) = grep { $_->{name} eq $name } @tables;
	return $table // croak "no table $name";
}

sub new
{
	my ($class, $pg, %options) = @_;
	my $self = bless { pg => $pg, %options, serial => 0, merge => $pg->sql('SHOW server_version_num') >= 150000 }, $class;
	$self->{directory} = "$PostgreSQL::Test::Utils::tmp_check/changes";
	make_path($self->{directory});
	$self->{directory} = abs_path($self->{directory});
	srand($self->{seed});
	return $self;
}

# ---- tables ----

# What a statement changes in tree its own cascades do not change as well: the order of that is not
# kept. So no row is its own parent, and MERGE does not delete there.
#
# Each update counts v up. Table audit has every change by the simplest means, a trigger for each row;
# an update of the key is a removal and an update there, too.
sub create_tables
{
	my ($self) = @_;
	my $pg = $self->{pg};
	$pg->sql(<<~'SQL');
		CREATE TABLE audit (number bigserial, relation text, op text, txid xid8, row jsonb);
		CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			NEW.v := OLD.v + 1;
			RETURN NEW;
		END $$;
		CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql AS $$
		DECLARE
			old_row jsonb := CASE WHEN TG_OP IN ('UPDATE', 'DELETE') THEN to_jsonb(OLD) END;
			new_row jsonb := CASE WHEN TG_OP IN ('INSERT', 'UPDATE') THEN to_jsonb(NEW) END;
			moved boolean := TG_OP = 'UPDATE' AND (old_row->'id', old_row->'part') IS DISTINCT FROM (new_row->'id', new_row->'part');
		BEGIN
			IF moved OR TG_OP = 'DELETE' THEN
				INSERT INTO audit (relation, op, txid, row) VALUES (TG_ARGV[0], 'delete', pg_current_xact_id(), old_row);
			END IF;
			IF TG_OP <> 'DELETE' THEN
				INSERT INTO audit (relation, op, txid, row) VALUES (TG_ARGV[0], lower(TG_OP), pg_current_xact_id(), coalesce(new_row, '{}'));
			END IF;
			RETURN NULL;
		END $$;
		CREATE FUNCTION update_again() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF NEW.again > 0 THEN
				UPDATE nested SET again = again - 1 WHERE id = NEW.id;
			END IF;
			RETURN NULL;
		END $$;
		SQL
	$self->_create($_) for @tables;
	$pg->sql(<<~'SQL');
		CREATE TRIGGER update_again AFTER INSERT OR UPDATE ON nested FOR EACH ROW EXECUTE FUNCTION update_again();
		ALTER TABLE tree ADD FOREIGN KEY (parent) REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE, ADD CHECK (parent <> id);
		SQL
	return;
}

sub _create
{
	my ($self, $table) = @_;
	my $name = $table->{name};
	my @columns = map { "$_ integer" } @{ $table->{key} };
	push @columns, 'v integer NOT NULL DEFAULT 0', 'tag text';
	push @columns, map { "$_ $table->{columns}{$_}" } sort keys %{ $table->{columns} };
	my $deferrable = $name eq 'swapped' ? ' DEFERRABLE' : '';
	my $key = 'PRIMARY KEY (' . join(', ', @{ $table->{key} }) . ")$deferrable";
	my $partition = $name eq 'parted' ? ' PARTITION BY LIST (part)' : '';
	my $pg = $self->{pg};

	$pg->sql("CREATE TABLE $name (" . join(', ', @columns, $key) . ")$partition");
	# Leaves whose columns lie otherwise, have gaps, or are two levels down.
	$pg->sql(<<~'SQL') if $name eq 'parted';
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
		CREATE TABLE parted_2 (gone text, body text, amount numeric(12,2), tag text, part integer NOT NULL, v integer NOT NULL DEFAULT 0, id integer NOT NULL);
		ALTER TABLE parted_2 DROP COLUMN gone;
		ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2);
		CREATE TABLE parted_3 PARTITION OF parted FOR VALUES IN (3) PARTITION BY HASH (id);
		CREATE TABLE parted_3a PARTITION OF parted_3 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
		CREATE TABLE parted_3b PARTITION OF parted_3 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
		SQL
	$pg->sql(<<~"SQL");
		CREATE TRIGGER count_up BEFORE UPDATE ON $name FOR EACH ROW EXECUTE FUNCTION count_up();
		CREATE TRIGGER a_audit AFTER INSERT OR UPDATE OR DELETE ON $name FOR EACH ROW EXECUTE FUNCTION write_down('$name');
		CREATE TRIGGER a_audit_truncate AFTER TRUNCATE ON $name FOR EACH STATEMENT EXECUTE FUNCTION write_down('$name');
		SQL
	return;
}

# ---- values ----

sub _below { return int rand $_[0] }
sub _pick { return $_[ rand @_ ] }
sub _id { return 1 + _below(KEYS) }

sub _distinct_ids
{
	my ($count) = @_;
	my %ids;
	$ids{ _id() } = 1 while keys %ids < $count;
	return sort { $a <=> $b } keys %ids;
}

# A constant of a column, as SQL.
my %constant = (
	'numeric(12,2)' => sub { sprintf '%d.%02d', _below(100_000) - 50_000, _below(100) },
	timestamptz => sub { sprintf "'2024-%02d-%02d %02d:%02d:%02d.%06d+00'", 1 + _below(12), 1 + _below(28), map({ _below($_) } 24, 60, 60), _below(1_000_000) },
	uuid => sub { "'" . md5_hex(rand) . "'" },
	jsonb => sub { sprintf q('{"n": %d, "list": [1, "%s", null], "no": null}'), _below(1000), _pick('a', 'b \\"quoted\\" \\\\', "it''s", "\x{c3}\x{a9}") },
	float8 => sub { sprintf '%.4f', (_below(80_000) - 40_000) / 16 },
	boolean => sub { _pick('true', 'false') },
	integer => sub { _below(3) },
	# The last is larger than a chunk of the outbox, and toasted.
	text => sub { _pick("''", "'x'", "'a,b'", "E'two\\nlines'", q('say "yes"'), "'\x{c3}\x{bc}'", "' '", (map { "repeat(md5('" . _below(99) . "'), " . (1 + _below($_)) . ')' } 3, 40), "repeat(md5('" . _below(99) . "'), 300)") });

sub _constant
{
	my ($table, $column) = @_;
	# A parent that may be there.
	return "(SELECT id FROM tree WHERE id = ${\_id()})" if $column eq 'parent';
	return 'NULL' if _below(8) == 0;
	return $constant{ $table->{columns}{$column} }->();
}

sub _row
{
	my ($table, $id, $tag) = @_;
	my @values = ($id, map { 1 + _below(3) } 2 .. @{ $table->{key} });
	return (@values, "'$tag'", map { _constant($table, $_) } sort keys %{ $table->{columns} });
}

sub _column_names
{
	my ($table) = @_;
	return (@{ $table->{key} }, 'tag', sort keys %{ $table->{columns} });
}

# ---- statements ----

sub _relation
{
	my ($table) = @_;
	return $table->{name} unless $table->{name} eq 'parted' && _below(3) == 0;
	return 'parted_' . _pick('1', '2', '3', '3a', '3b');
}

sub _assignments
{
	my ($table, $tag) = @_;
	my @columns = grep { _below(2) } sort keys %{ $table->{columns} };
	return join ', ', "tag = '$tag'", map { "$_ = " . _constant($table, $_) } @columns;
}

sub _where
{
	my $from = _id();
	return _pick("id = $from", "id = $from", "id BETWEEN $from AND " . ($from + _below(8)), "id % 7 = " . _below(7));
}

sub _insert
{
	my ($self, $table, $tag) = @_;
	my $names = join ', ', _column_names($table);
	my @rows = map { '(' . join(', ', _row($table, $_, $tag)) . ')' } _distinct_ids(1 + _below(5));
	my $key = join ', ', @{ $table->{key} };
	my $update = join ', ', map { "$_ = excluded.$_" } 'tag', sort keys %{ $table->{columns} };
	my $conflict = _below(10) ? _pick(' ON CONFLICT DO NOTHING', (" ON CONFLICT ($key) DO UPDATE SET $update") x 3) : '';
	# A deferrable key cannot arbitrate.
	return $self->_insert_select($table, $tag) if $table->{name} eq 'swapped';
	return "INSERT INTO $table->{name} ($names) VALUES " . join(', ', @rows) . $conflict;
}

sub _insert_select
{
	my ($self, $table, $tag) = @_;
	my $name = $table->{name};
	my $names = join ', ', _column_names($table);
	my (undef, @values) = _row($table, 0, $tag);
	my ($from, $count) = (_id(), _pick(3, 10, 30));
	return "INSERT INTO $name ($names) SELECT " . join(', ', 'g', @values) . " FROM generate_series($from, $from + $count) g"
	  . " WHERE NOT EXISTS (SELECT FROM $name WHERE id = g)";
}

sub _update
{
	my ($self, $table, $tag) = @_;
	return 'UPDATE ' . _relation($table) . ' SET ' . _assignments($table, $tag) . ' WHERE ' . _where();
}

sub _delete
{
	my ($self, $table, $tag) = @_;
	return 'DELETE FROM ' . _relation($table) . ' WHERE ' . _where();
}

# Another key: for one row, or for many at once.
sub _change_key
{
	my ($self, $table, $tag) = @_;
	my $name = $table->{name};
	if (@{ $table->{key} } > 1)
	{
		my $part = _pick(1 + _below(3), 'part % 3 + 1');
		return "UPDATE $name SET part = $part, tag = '$tag' WHERE " . _where();
	}
	return "UPDATE $name SET id = ${\(KEYS + 1)} - id, tag = '$tag' WHERE id <= ${\(KEYS)}" if $name eq 'swapped' && _below(2);
	my ($from, $to) = (_id(), _id());
	return "UPDATE $name SET id = CASE id WHEN $from THEN $to ELSE $from END, tag = '$tag' WHERE id IN ($from, $to)" if $name eq 'swapped';
	return "UPDATE $name SET id = $to, tag = '$tag' WHERE id = $from AND NOT EXISTS (SELECT FROM $name WHERE id = $to)";
}

sub _merge
{
	my ($self, $table, $tag) = @_;
	return $self->_update($table, $tag) unless $self->{merge};
	my $names = join ', ', _column_names($table);
	my ($id, @values) = _row($table, 's.id', $tag);
	my $from = _id();
	my $on = join ' AND ', 't.id = s.id', map { "t.part = " . shift @values } grep { $_ eq 'part' } @{ $table->{key} };
	($id, @values) = _row($table, 's.id', $tag);
	return "MERGE INTO $table->{name} t USING generate_series($from, $from + ${\_below(10)}) s(id) ON $on"
	  . ($table->{name} eq 'tree' ? '' : ' WHEN MATCHED AND s.id % 5 = 0 THEN DELETE')
	  . ' WHEN MATCHED THEN UPDATE SET ' . _assignments($table, $tag)
	  . " WHEN NOT MATCHED THEN INSERT ($names) VALUES (" . join(', ', $id, @values) . ')';
}

# Keys of its own, mostly.
sub _copy
{
	my ($self, $table, $tag) = @_;
	my $serial = ++$self->{serial};
	my $file = "$self->{directory}/copy_$serial";
	my @names = (@{ $table->{key} }, 'tag', 'body');
	my $base = _below(6) ? 1000 + $serial * 100 : 1;
	my @lines = map { join "\t", $base + $_, (map { 1 + _below(3) } 2 .. @{ $table->{key} }), $tag, _pick('\N', 'x', 'a,"b"', 'two\nlines') } 0 .. _pick(2, 20, 60);
	append_to_file($file, join '', map { "$_\n" } @lines);
	return "COPY $table->{name} (" . join(', ', @names) . ") FROM '$file'";
}

sub _truncate
{
	my ($self, $table, $tag) = @_;
	return _below(3) ? $self->_delete($table, $tag) : "TRUNCATE $table->{name}";
}

my @statements = ((\&_insert) x 8, (\&_update) x 9, (\&_delete) x 3, (\&_change_key) x 3, (\&_merge) x 3, (\&_insert_select) x 2, \&_copy, \&_truncate);

sub _statement
{
	my ($self, $tag) = @_;
	return _pick(@statements)->($self, _pick(@tables), $tag);
}

sub _several
{
	my ($self, $tag, $most) = @_;
	return map { $self->_statement($tag) } 0 .. _below($most);
}

# ---- transactions ----

sub _single { my ($self, $tag) = @_; return $self->_statement($tag) }
sub _commit { my ($self, $tag) = @_; return ('BEGIN', $self->_several($tag, 4), 'COMMIT') }
sub _rollback { my ($self, $tag) = @_; return ('BEGIN', $self->_several("ABORTED $tag", 4), 'ROLLBACK') }

sub _savepoints
{
	my ($self, $tag) = @_;
	return (
		'BEGIN', $self->_several($tag, 2),
		'SAVEPOINT one', $self->_several("UNDONE $tag", 2),
		'SAVEPOINT two', $self->_several("UNDONE $tag", 2),
		_pick('RELEASE two', 'ROLLBACK TO two'), $self->_several("UNDONE $tag", 1),
		'ROLLBACK TO one', $self->_several($tag, 2),
		'SAVEPOINT three', $self->_several($tag, 2),
		_pick('RELEASE three', 'RELEASE one', 'SAVEPOINT four'), $self->_several($tag, 2), 'COMMIT');
}

# An exception takes its block's changes back, and perhaps one of PostgreSQL's own did so before.
sub _exception
{
	my ($self, $tag) = @_;
	my ($before, $undone, $after) = map { join '; ', $self->_several($_, 2) } $tag, "UNDONE $tag", $tag;
	my $table = _pick('plain', 'olds');
	my $id = _id();
	return "DO \$do\$ BEGIN $before;\n"
	  . "BEGIN $undone; RAISE EXCEPTION 'taken back'; EXCEPTION WHEN raise_exception OR integrity_constraint_violation OR cardinality_violation THEN NULL; END;\n"
	  . "BEGIN INSERT INTO $table (id, tag) VALUES ($id, '$tag'); EXCEPTION WHEN unique_violation THEN UPDATE $table SET tag = '$tag' WHERE id = $id; END;\n"
	  . "$after; END \$do\$";
}

# Left to somebody else at times, who goes by the name.
sub _prepare
{
	my ($self, $tag) = @_;
	my $end = _pick('commit', 'commit', 'rollback');
	my $name = "$end $tag";
	my @end = _below(5) ? uc($end) . " PREPARED '$name'" : ();
	return ('BEGIN', $self->_several($end eq 'commit' ? $tag : "ABORTED $tag", 3), "PREPARE TRANSACTION '$name'", @end);
}

my @transactions = ((\&_single) x 5, (\&_commit) x 5, (\&_rollback) x 2, (\&_savepoints) x 4, (\&_exception) x 2, (\&_prepare) x 2);

# ---- sessions ----

# Writes all scripts, before any runs: what is in them follows from the seed alone.
sub _write_scripts
{
	my ($self) = @_;
	for my $round (1 .. $self->{rounds})
	{
		for my $session (1 .. $self->{sessions})
		{
			my @lines = map { _pick(@transactions)->($self, "s${session}r${round}t$_") } 1 .. $self->{transactions};
			append_to_file($self->_file($session, $round, 'sql'), join '', map { "$_;\n" } @lines);
		}
	}
	return;
}

sub _file { my ($self, $session, $round, $suffix) = @_; return "$self->{directory}/s${session}r$round.$suffix" }

# Runs all of it. A session whose connection is lost goes on with its next script.
sub run
{
	my ($self, $while) = @_;
	$self->_write_scripts;
	my $all = $self->{sessions} * $self->{rounds};
	my ($done, %next, %running) = (0, map { $_ => 1 } 1 .. $self->{sessions});
	$self->{running} = \%running;
	my $deadline = time + 2 * $PostgreSQL::Test::Utils::timeout_default;

	while ($done < $all)
	{
		for my $session (grep { $next{$_} <= $self->{rounds} } keys %next)
		{
			next if grep { $_ == $session } values %running;
			$running{ $self->_start($session, $next{$session}++) } = $session;
		}
		while (%running && (my $pid = waitpid(-1, POSIX::WNOHANG)) > 0)
		{
			$done++ if delete $running{$pid};
		}
		$self->resolve(0);
		$while->($done, $all);
		croak 'the sessions do not get on' if time > $deadline;
		select undef, undef, undef, 0.02;
	}
	return;
}

sub _start
{
	my ($self, $session, $round) = @_;
	my $node = $self->{pg}->node;
	my $pid = fork // die "fork: $!";
	return $pid if $pid;

	$ENV{PGOPTIONS} = '-c lock_timeout=400ms -c deadlock_timeout=40ms -c statement_timeout=60s';
	open STDIN, '<', '/dev/null' or POSIX::_exit(126);
	open STDOUT, '>', $self->_file($session, $round, 'out') or POSIX::_exit(126);
	open STDERR, '>', $self->_file($session, $round, 'err') or POSIX::_exit(126);
	{
		exec 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres'), '-f', $self->_file($session, $round, 'sql')
	};
	POSIX::_exit(127);
}

# The output of a statement, or undef when it fails, if only because the server is down.
sub attempt
{
	my ($self, $sql) = @_;
	# psql that cannot connect does not read what it is given.
	my ($status, $out) = eval { $self->{pg}->node->psql('postgres', $sql) };
	return defined $status && $status == 0 ? $out : undef;
}

# Ends prepared transactions that their sessions have left alone; all of them, or some.
sub resolve
{
	my ($self, $all) = @_;
	return unless $all || _below(8) == 0;
	my $names = $self->attempt('SELECT gid FROM pg_prepared_xacts' . ($all ? '' : " WHERE prepared < now() - interval '150 ms'"));
	for my $name (split /\n/, $names // '')
	{
		my ($end) = $name =~ /^(commit|rollback) / or croak "prepared transaction '$name'";
		# The session may have been faster.
		$self->attempt(uc($end) . " PREPARED '$name'");
	}
	return;
}

# Errors that nobody has provoked: { sqlstate => first message }; and the counts of all.
sub unexpected
{
	my ($self) = @_;
	my %unexpected;
	for my $file (glob "$self->{directory}/*.err")
	{
		for my $line (split /\n/, slurp_file($file))
		{
			my ($code, $text) = $line =~ /(?:ERROR|FATAL|PANIC):  (\w{5}): (.*)/ or next;
			$self->{errors}{$code}++;
			# It has failed before, and so was not prepared.
			next if $code eq '42704' && $text =~ /^prepared transaction/;
			$unexpected{$code} //= "$file: $text" unless $expected{$code};
		}
	}
	return \%unexpected;
}

sub errors { return $_[0]->{errors} }

1;
