# KustoLocal: one running test/kusto-local, and its control interface.
#
#   my $kusto = KustoLocal->start;                  # or ->start('--option', ...)
#   $kusto->create_table('db', 'T', 'a:int, b:string');
#   $kusto->fault({ service => 'queue', method => 'POST' }, { status => 503 }, times => 2);
#   ...
#   $kusto->assert_no_violations;
#
# The process ends with the test: it watches its standard input, whose other end is ours alone.
# Every method dies with what the service said when the service refuses.
package KustoLocal;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use HTTP::Tiny;
use IO::Select;
use JSON::PP;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $program = abs_path(dirname(__FILE__) . '/../../test/kusto-local/bin/kusto-local');
my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my @running;

sub start
{
	my ($class, @args) = @_;
	my $self = bless { http => HTTP::Tiny->new(timeout => 120) }, $class;
	my $log_dir = $PostgreSQL::Test::Utils::log_path;
	my $count = @running ? '_' . (@running + 1) : '';
	(my $test = $0) =~ s{.*/|\.pl$}{}g;
	$self->{log_file} = "$log_dir/${test}_kusto_local$count.log";

	pipe(my $child_in, $self->{stdin}) or die "pipe: $!";
	pipe(my $ready, my $child_out) or die "pipe: $!";
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		_become_service($self->{log_file}, $child_in, $child_out, @args);
	}
	close $child_in;
	close $child_out;
	$self->{pid} = $pid;
	# Kept open: the service may still write to it.
	$self->{stdout} = $ready;
	push @running, $self;

	my $line = _read_line($ready, 60)
	  // die "kusto-local did not start, see $self->{log_file}\n";
	my $where = $json->decode($line);
	$self->{$_} = $where->{$_} // die "kusto-local names no $_: $line"
	  for qw(engine ingest login imds control client);
	$self->{ready} = $where;
	note "kusto-local $pid: control at $self->{control}";
	return $self;
}

sub _become_service
{
	my ($log_file, $in, $out, @args) = @_;

	# Signals for the test are not for the service: it ends when its input does.
	POSIX::setsid();
	POSIX::dup2(fileno($in), 0);
	POSIX::dup2(fileno($out), 1);
	my $log = POSIX::open($log_file, POSIX::O_WRONLY | POSIX::O_CREAT | POSIX::O_TRUNC, 0644);
	POSIX::dup2($log, 2) if defined $log;
	{ exec { $program } $program, '--exit-on-stdin-close', '--database', 'db', @args }
	POSIX::_exit(127);
}

sub _read_line
{
	my ($fh, $seconds) = @_;
	my $deadline = time + $seconds;
	my $line = '';
	while ($line !~ /\n/)
	{
		return undef unless IO::Select->new($fh)->can_read($deadline - time);
		sysread($fh, $line, 65536, length $line) or return undef;
	}
	return $line;
}

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;

	close delete $self->{stdin};
	my $deadline = time + 10;
	while (waitpid($pid, POSIX::WNOHANG) == 0)
	{
		if (time > $deadline)
		{
			kill 'KILL', -$pid;
			waitpid $pid, 0;
			last;
		}
		select undef, undef, undef, 0.02;
	}
	return;
}

END
{
	# Waiting for a child overwrites the test's own result.
	my $result = $?;
	$_->stop for @running;
	$? = $result;
}

# ---- where it is ----

sub engine { return $_[0]->{engine} }
sub ingest { return $_[0]->{ingest} }
sub login { return $_[0]->{login} }
sub imds { return $_[0]->{imds} }
# { endpoint, header } of App Service's managed identity.
sub app_service { return $_[0]->{ready}{app_service_identity} }
# Names of the storage accounts.
sub accounts { return [ map { $_->{name} } @{ $_[0]->{ready}{accounts} } ] }
sub tenant { return $_[0]->{client}{tenant} }
sub client_id { return $_[0]->{client}{client_id} }
sub client_secret { return $_[0]->{client}{client_secret} }

# ---- control ----

sub _call
{
	my $text = _request(@_);
	return length $text ? $json->decode($text) : undef;
}

sub _request
{
	my ($self, $method, $path, $query, $body) = @_;
	my $url = $self->{control} . $path;
	$url .= '?' . $self->{http}->www_form_urlencode($query) if $query;
	my %options;
	if (defined $body)
	{
		$options{headers} = { 'Content-Type' => 'application/json' };
		$options{content} = $json->encode($body);
	}
	my $answer = $self->{http}->request($method, $url, \%options);
	croak "kusto-local: $method $path: $answer->{status} $answer->{content}"
	  unless $answer->{success};
	return $answer->{content};
}

# Forget data, log and faults, and take the starting configuration again. Violations stay known
# here: a test that begins anew for each of its cases does not get away with them.
sub reset
{
	my ($self) = @_;
	push @{ $self->{violations} }, @{ $self->_call('GET', '/violations') };
	return $self->_call('POST', '/reset', undef, {});
}

sub config { my ($self, %settings) = @_; return $self->_call('POST', '/config', undef, \%settings) }

# Add one fault: what it matches, what it does, and times (default 1, -1: always) and skip.
sub fault
{
	my ($self, $match, $action, %more) = @_;
	return $self->_call('POST', '/faults', undef, { match => $match, action => $action, %more });
}

# Let go of answers that a fault holds: of these requests of the log, in this order, or of all.
sub release
{
	my ($self, @requests) = @_;
	return $self->_call('POST', '/release', undef, { @requests ? (seqs => [ map { $_->{seq} } @requests ]) : () });
}

sub clear_faults { my ($self) = @_; return $self->_call('DELETE', '/faults') }

# How often faults have struck since the last reset.
sub fired
{
	my ($self) = @_;
	my $fired = 0;
	$fired += $_->{fired} for @{ $self->_call('GET', '/faults') };
	return $fired;
}

# All since the start, or since they were forgiven.
sub violations
{
	my ($self) = @_;
	return [ @{ $self->{violations} // [] }, @{ $self->_call('GET', '/violations') } ];
}

# For a test that provokes some.
sub forgive_violations
{
	my ($self) = @_;
	$self->{violations} = [];
	return $self->_call('POST', '/violations/reset', undef, {});
}

# The requests so far, in order; filter by any of service, method and path (a regular expression).
sub log
{
	my ($self, %filter) = @_;
	my $path = delete $filter{path};
	my @entries = @{ $self->_call('GET', '/log') };
	for my $key (keys %filter)
	{
		@entries = grep { ($_->{$key} // '') eq $filter{$key} } @entries;
	}
	@entries = grep { $_->{path} =~ $path } @entries if defined $path;
	return @entries;
}

# Typed rows, each a list of values in the order of the columns.
sub rows
{
	my ($self, $database, $table) = @_;
	return $self->_call('GET', '/rows', { db => $database, table => $table })->{rows};
}

# The number of rows.
sub count
{
	my ($self, $database, $table) = @_;
	return $self->_call('GET', '/rows', { db => $database, table => $table, limit => 0 })->{count};
}

# { rows, hash } of a table's content, whatever the order of its rows.
sub hash
{
	my ($self, $database, $table) = @_;
	return $self->_call('GET', '/hash', { db => $database, table => $table });
}

# Ingestion messages as they came, secrets masked, and blobs that are there.
sub messages { my ($self) = @_; return $self->_call('GET', '/messages') }
# [ { id, rows, tags, ... } ] of a table.
sub extents { my ($self, $db, $table) = @_; return $self->_call('GET', '/extents', { db => $db, table => $table }) }
sub blobs { my ($self) = @_; return $self->_call('GET', '/blobs') }

# { bytes, requests, blobs } of the account that throws all away (config discard).
sub discarded { my ($self) = @_; return $self->_call('GET', '/discard') }

# { listener => { open, accepted } }
sub connections { my ($self) = @_; return $self->_call('GET', '/connections') }

# A bearer token, and the end of all that have been issued; of a kind only: 'bearer', 'identity'.
sub issue_token { my ($self) = @_; return $self->_call('POST', '/token', undef, {})->{token} }
sub revoke_tokens { my ($self, $kind) = @_; return $self->_call('POST', '/tokens/revoke', undef, { kind => $kind }) }

# The end of all signatures that have been issued.
sub end_sas { my ($self) = @_; return $self->_call('POST', '/sas/end', undef, {}) }

# An outage of 'service', 'storage', or single listeners such as 'acctone01.blob', until up().
# What storage has survives with --state-dir and without lose => 1, and only then.
sub down
{
	my ($self, $parts, %options) = @_;
	return $self->_call('POST', '/down', undef,
		{ parts => $parts, lose => $options{lose} ? JSON::PP::true : JSON::PP::false });
}

sub up { my ($self) = @_; return $self->_call('POST', '/up', undef, {}) }

# columns: 'name:type, ...'
sub create_table
{
	my ($self, $database, $table, $columns) = @_;
	return $self->command($database, ".create-merge table ['$table'] ($columns)");
}

sub command
{
	my ($self, $database, $csl) = @_;
	return $self->_call('POST', '/command', undef, { db => $database, csl => $csl });
}

# The same as JSON text, for results that are too large to be taken apart here.
sub command_text
{
	my ($self, $database, $csl) = @_;
	return $self->_request('POST', '/command', undef, { db => $database, csl => $csl });
}

# Returns when every message that has been posted is dealt with.
sub settle { my ($self) = @_; return $self->_call('POST', '/settle', undef, {}) }

# ---- assertions ----

# The last word of every test: what we sent was what the documentation asks for.
sub assert_no_violations
{
	my ($self, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $violations = $self->violations;
	is(scalar @$violations, 0, $name // 'the service saw no violation of the protocol')
	  or diag explain $violations;
	return;
}

# Nothing has reached storage: neither a blob, nor a block, nor a message.
sub assert_nothing_uploaded
{
	my ($self, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @writes = grep { $_->{service} =~ /^(?:blob|queue|discard)$/ && $_->{method} =~ /^P/ } $self->log;
	is(scalar @writes, 0, $name // 'nothing was uploaded') or diag explain \@writes;
	return;
}

1;
