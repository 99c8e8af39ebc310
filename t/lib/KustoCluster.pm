# KustoCluster: a PostgreSQL server with the extension, connected to a KustoLocal.
#
#   my $kusto = KustoLocal->start;
#   my $pg = KustoCluster->start($kusto);           # extension, server adx, user mapping
#   my $id = $pg->ingest('SELECT 1 AS a', 'T', create_table => 'true');
#   $pg->succeeds($id);                             # waits; fails the test unless it landed
#   $pg->fails_like('SELECT kusto_ingest(NULL, $$db$$, $$T$$)',
#       { sqlstate => '22004', message => qr/null/ }, 'a NULL query');
#
# Uses the test modules of PostgreSQL under the names that they have since version 15, and in the
# minor releases of 13 and 14 since 2022.
package KustoCluster;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use JSON::PP;
use KustoSession;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

our @EXPORT_OK = qw(literal elapsed wait_until process_status);

# The modules of PostgreSQL send what Perl says at its end to a log; CI keeps what is said here.
my $on_die = $SIG{__DIE__};
$SIG{__DIE__} = sub {
	diag "died: $_[0]" if defined $^S && !$^S;
	$on_die->(@_) if ref $on_die;
};

# Kusto's database in all tests.
use constant DATABASE => 'db';

# kusto: a KustoLocal, or undef for no server and no mapping. Options: name, conf (text for
# postgresql.conf), init (arguments of initdb), server (options of the server that replace or, when
# undef, take away the usual ones), mapping (the same), environment (of the postmaster),
# faults (1: the library that has accidents on demand).
sub start
{
	my ($class, $kusto, %options) = @_;
	my @install_path = $options{faults} ? (install_path => $ENV{KUSTO_FAULTS_POSTGRES}) : ();
	my $node = PostgreSQL::Test::Cluster->new($options{name} // 'main', @install_path);
	my $self = bless { node => $node, kusto => $kusto, dbname => 'postgres' }, $class;

	$node->init(extra => $options{init} // [ '--encoding=UTF8', '--locale=C' ]);
	$node->append_conf('postgresql.conf', <<~'CONF');
		log_statement = none
		client_min_messages = warning
		max_connections = 30
		max_prepared_transactions = 10
		kusto_ingest.naptime = 1s
		CONF
	$node->append_conf('postgresql.conf', $options{conf}) if $options{conf};
	{
		local @ENV{ keys %{ $options{environment} // {} } } = values %{ $options{environment} // {} };
		$node->start;
	}
	$self->sql('CREATE EXTENSION kusto_ingest');
	$self->connect_to($kusto, server => $options{server}, mapping => $options{mapping}) if $kusto;
	return $self;
}

sub node { return $_[0]->{node} }
sub kusto { return $_[0]->{kusto} }

# CREATE SERVER and CREATE USER MAPPING for a KustoLocal. Options: name (default adx), user (default
# CURRENT_USER), server and mapping as for start().
sub connect_to
{
	my ($self, $kusto, %options) = @_;
	my $name = $options{name} // 'adx';
	my $user = $options{user} // 'CURRENT_USER';
	my %server = (
		query_uri => $kusto->engine,
		ingest_uri => $kusto->ingest,
		database => DATABASE,
		%{ $options{server} // {} });
	my %mapping = (
		auth => 'client_secret',
		tenant => $kusto->tenant,
		client_id => $kusto->client_id,
		client_secret => $kusto->client_secret,
		%{ $options{mapping} // {} });
	$self->sql("CREATE SERVER $name FOREIGN DATA WRAPPER kusto " . _options(\%server));
	$self->sql("CREATE USER MAPPING FOR $user SERVER $name " . _options(\%mapping));
	return $name;
}

sub _options
{
	my ($options) = @_;
	my @items = map { "$_ " . literal($options->{$_}) } grep { defined $options->{$_} } sort keys %$options;
	return @items ? 'OPTIONS (' . join(', ', @items) . ')' : '';
}

# ---- statements ----

# Output of psql; dies on an error. Options: user, dbname.
sub sql
{
	my ($self, $sql, %options) = @_;
	# Before version 14 PostgreSQL's modules know of no other user than this one.
	local $ENV{PGUSER} = $options{user} if defined $options{user};
	return $self->node->safe_psql($options{dbname} // $self->{dbname}, $sql);
}

# The error of the first statement that fails, as from parse_error; dies when none does.
# Options: user, dbname.
sub fails
{
	my ($self, $sql, %options) = @_;
	my ($status, $out, $err) = $self->_psql($sql, %options);
	croak "statement did not fail: $sql\n$out" if $status == 0;
	return parse_error($err) // croak "psql failed: $err";
}

sub _psql
{
	my ($self, $sql, %options) = @_;
	local $ENV{PGUSER} = $options{user} if defined $options{user};
	return $self->node->psql($options{dbname} // $self->{dbname}, $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
}

# What psql says with VERBOSITY=verbose, as { severity, sqlstate, message, detail, hint, context,
# text }; undef when there is no error in it.
sub parse_error
{
	my ($text) = @_;
	my %error = (text => $text);
	my $field;
	for my $line (split /\n/, $text)
	{
		if ($line =~ /^(?:psql:.*?: )?(ERROR|FATAL|PANIC):  ([0-9A-Z]{5}): (.*)/)
		{
			# The first one: later ones follow from it.
			last if defined $error{severity};
			@error{qw(severity sqlstate message)} = ($1, $2, $3);
			$field = 'message';
		}
		elsif (defined $error{severity} && $line =~ /^(DETAIL|HINT|CONTEXT|QUERY|LOCATION|LINE \d+):  ?(.*)/)
		{
			$field = lc $1;
			$error{$field} = $2;
		}
		elsif (defined $field)
		{
			$error{$field} .= "\n$line";
		}
	}
	return defined $error{severity} ? \%error : undef;
}

# Tests an error: expected holds sqlstate (text) and message, detail, hint (regular expressions;
# undef: there must be none; missing: not tested).
sub error_is
{
	my ($self, $error, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @wrong;
	for my $field (sort keys %$expected)
	{
		my ($want, $got) = ($expected->{$field}, $error->{$field});
		my $fits =
		    !defined $want ? !defined $got
		  : !defined $got ? 0
		  : ref $want ? $got =~ $want
		  : $got eq $want;
		push @wrong, "$field is not " . ($want // 'absent') unless $fits;
	}
	return ok(@wrong == 0, $name) || diag join "\n", @wrong, $error->{text} // explain $error;
}

sub fails_like
{
	my ($self, $sql, $expected, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, $out, $err) = $self->_psql($sql, %options);
	my $error = $status == 0 ? undef : parse_error($err);
	return $self->error_is($error, $expected, $name) if $error;
	fail($name);
	diag "the statement did not fail as SQL: $sql\n$out\n$err";
	return 0;
}

# A connection that stays; options: user, dbname.
sub session
{
	my ($self, %options) = @_;
	return KustoSession->new($self->node, $options{dbname} // $self->{dbname}, %options);
}

# Polls until the query gives the value (default: true); fails the test at the deadline.
sub poll
{
	my ($self, $sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $reached = $self->node->poll_query_until($self->{dbname}, $sql, $expected // 't');
	ok($reached, $name) if defined $name;
	croak "never came true: $sql" unless $reached || defined $name;
	return $reached;
}

# ---- exports ----

# The call as SQL text: named arguments are SQL expressions. database: another than DATABASE.
sub ingest_call
{
	my ($self, $query, $table, %arguments) = @_;
	my $database = delete $arguments{database} // DATABASE;
	my @list = map { literal($_) } $query, $database, $table;
	push @list, map { "$_ => $arguments{$_}" } sort keys %arguments;
	return 'kusto_ingest(' . join(', ', @list) . ')';
}

# Runs and commits it; the operation's id.
sub ingest
{
	my ($self, $query, $table, %arguments) = @_;
	return $self->sql('SELECT ' . $self->ingest_call($query, $table, %arguments));
}

# The same for kusto_ingest_async; options come first: user.
sub async_call
{
	my ($self, @call) = @_;
	return 'SELECT ' . $self->ingest_call(@call) =~ s/^kusto_ingest\(/kusto_ingest_async(/r;
}

sub async
{
	my ($self, @call) = @_;
	my %options = ref $call[0] ? %{ shift @call } : ();
	return $self->sql($self->async_call(@call), %options);
}

# The row of kusto.operations, or undef.
sub operation
{
	my ($self, $id) = @_;
	my $row = $self->sql("SELECT row_to_json(o) FROM kusto.operations o WHERE id = '$id'");
	return $row eq '' ? undef : JSON::PP->new->decode($row);
}

# The rows of kusto.blobs in order.
sub blobs
{
	my ($self, $id) = @_;
	my $rows = $self->sql("SELECT coalesce(json_agg(b ORDER BY ordinal), '[]') FROM kusto.blobs b WHERE operation_id = '$id'");
	return JSON::PP->new->decode($rows);
}

# Calls code that brings about a crash; returns when the server has restarted because of it.  Only
# the log tells: until the postmaster has noticed, it lets clients in, and by the next attempt it may
# do so again.
sub crash_by
{
	my ($self, $code) = @_;
	my $offset = -s $self->node->logfile;
	$code->();
	wait_until(sub { slurp_file($self->node->logfile, $offset) =~ /database system is ready to accept connections/ },
		'the server is there again');
	$self->poll('SELECT true');
	return;
}

# The same by kill -9 of one of the server's processes.
sub crash
{
	my ($self, $pid) = @_;
	return $self->crash_by(sub { kill 'KILL', $pid or croak "kill $pid: $!" });
}

# A background worker that knows nothing yet: no token, no resources.
sub forget_worker
{
	my ($self) = @_;
	my $pids = $self->sql(<<~'SQL');
		SELECT string_agg(pid::text, ',') FROM pg_stat_activity
		WHERE backend_type LIKE 'kusto%' AND datname = current_database()
		SQL
	return if $pids eq '';
	$self->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid IN ($pids)");
	$self->poll("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid IN ($pids)");
	return;
}

# Waits until the operation has ended; its row.
sub finished
{
	my ($self, $id, $timeout) = @_;
	$timeout //= '60 s';
	$self->sql("SELECT kusto_wait('$id', '$timeout')");
	return $self->operation($id);
}

sub ends_as
{
	my ($self, $id, $state, $name, $timeout) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $operation = $self->finished($id, $timeout);
	is($operation->{state}, $state, $name // "the operation ends as $state")
	  or diag explain $operation, $self->blobs($id), $self->recent_requests;
	return $operation;
}

# The last that the service was asked, one line each.
sub recent_requests
{
	my ($self) = @_;
	my @log = map { "$_->{at} $_->{service} $_->{method} $_->{path} " . ($_->{status} // 'no answer') } $self->kusto->log;
	return [ @log > 30 ? @log[-30 .. -1] : @log ];
}

sub succeeds
{
	my ($self, $id, $name, $timeout) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $self->ends_as($id, 'succeeded', $name // 'the rows land', $timeout);
}

# Exports a query and tests that Kusto's table then holds exactly these rows, in any order.
sub lands
{
	my ($self, $query, $table, $rows, $name, %arguments) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $id = $self->ingest($query, $table, %arguments);
	my $operation = $self->succeeds($id, "$name: it succeeds");
	same_rows($self->kusto->rows($arguments{database} // DATABASE, $table), $rows, $name);
	return $operation;
}

# Tests that Kusto's table holds exactly these rows once the service has nothing left to do.
sub rows_are
{
	my ($self, $table, $rows, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->kusto->settle;
	return same_rows($self->kusto->rows(DATABASE, $table), $rows, $name);
}

# Waits until the operation is in this state.
sub state_is
{
	my ($self, $id, $state, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $self->poll("SELECT state = '$state' FROM kusto.operations WHERE id = '$id'", 't', $name);
}

# Compares typed rows, in any order.
sub same_rows
{
	my ($got, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $json = JSON::PP->new->canonical->allow_nonref->allow_blessed->convert_blessed;
	my @sorted = map { [ sort map { $json->encode($_) } @$_ ] } $got, $expected;
	return is_deeply($sorted[0], $sorted[1], $name);
}

# Sets parameters of the server.  When it returns, the postmaster has read them and told its
# processes, of which each notices when it next looks.
sub set_config
{
	my ($self, %settings) = @_;
	my $loaded = $self->sql('SELECT pg_conf_load_time()');
	$self->sql("LOAD 'kusto_ingest'; ALTER SYSTEM SET $_ = " . literal($settings{$_})) for sort keys %settings;
	$self->sql('SELECT pg_reload_conf()');
	$self->poll("SELECT pg_conf_load_time() > '$loaded'");
	return;
}

# ---- odds and ends ----

sub literal
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return $text =~ s/\\/\\\\/g ? " E'$text'" : "'$text'";
}

# Seconds that code takes, and what it returns.
sub elapsed
{
	my ($code) = @_;
	my $begin = time;
	my $result = $code->();
	return (time - $begin, $result);
}

# Calls code until it returns something true, which is returned; dies at the deadline.
sub wait_until
{
	my ($code, $what, $seconds) = @_;
	my $deadline = time + ($seconds // $PostgreSQL::Test::Utils::timeout_default);
	while (1)
	{
		my $result = $code->();
		return $result if $result;
		croak "timed out: $what" if time > $deadline;
		select undef, undef, undef, 0.01;
	}
}

# /proc/<pid>/status as a hash: VmHWM, RssAnon in kB, Threads; and fds, the open descriptors.
sub process_status
{
	my ($pid) = @_;
	my %status = slurp_file("/proc/$pid/status") =~ /^(\w+):\s+(\d+)/mg;
	opendir(my $dir, "/proc/$pid/fd") or croak "/proc/$pid/fd: $!";
	$status{fds} = grep { /^\d+$/ } readdir $dir;
	return \%status;
}

1;
