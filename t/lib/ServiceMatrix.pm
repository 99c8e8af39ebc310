# ServiceMatrix: cases of a service that fails, as a table.
#
#   my $matrix = ServiceMatrix->new($kusto, $pg);
#   $matrix->run('storage is busy for a while',
#       faults => [ [ { service => 'blob' }, { status => 503 }, times => 3 ] ],
#       requests => { 'Put Blob' => [ 4, 4 ] });
#
# Each case begins with an empty service, a worker that knows nothing and a session of its own. It
# exports, waits for the end, and then counts: rows in Kusto, states of operation and blobs,
# requests by kind. What the service calls a violation of the protocol fails the case.
package ServiceMatrix;

use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed wait_until);
use Test::More;
use Time::HiRes qw(time);

# Kinds of requests, as their names in the documentation of Azure and Kusto.
my %kinds = (
	'Put Blob' => sub { $_->{service} eq 'blob' && $_->{method} eq 'PUT' && $_->{path} !~ /[?&]comp=/ },
	'Put Block' => sub { $_->{service} eq 'blob' && $_->{path} =~ /[?&]comp=block(?:&|$)/ },
	'Put Block List' => sub { $_->{service} eq 'blob' && $_->{path} =~ /[?&]comp=blocklist(?:&|$)/ },
	'Put Message' => sub { $_->{service} eq 'queue' && $_->{method} eq 'POST' },
	'Insert Entity' => sub { $_->{service} eq 'table' && $_->{method} eq 'POST' },
	'Get Entity' => sub { $_->{service} eq 'table' && $_->{method} eq 'GET' },
	'token' => sub { $_->{service} eq 'login' && $_->{path} =~ m{/oauth2/v2\.0/token} },
	'metadata' => sub { $_->{path} =~ m{/auth/metadata} },
	'ingestion resources' => sub { ($_->{csl} // '') =~ /^\.get ingestion resources/ },
	'identity token' => sub { ($_->{csl} // '') =~ /^\.get kusto identity token/ },
	'management at the ingestion host' => sub { $_->{service} eq 'ingest' && $_->{path} =~ m{/v1/rest/mgmt} },
	'create table' => sub { ($_->{csl} // '') =~ /^\.create-merge table/ },
	'all' => sub { 1 });

# What is exported: query, its rows, settings.
my %exports = (
	row => { query => q(SELECT 1 AS i, 'x' AS s), rows => 1 },
	blocks => { query => 'TABLE wide', rows => 80_000 },
	blobs => {
		query => 'SELECT i, md5(i::text) AS s FROM generate_series(1, 60000) i',
		rows => 60_000,
		settings => { max_blob_size => '1MB' }
	});

sub new
{
	my ($class, $kusto, $pg) = @_;
	$pg->sql(<<~'SQL');
		CREATE TABLE wide AS
		SELECT i, encode(sha512(i::text::bytea), 'hex') || encode(sha512((-i)::text::bytea), 'hex') AS s
		FROM generate_series(1, 80000) i
		SQL
	return bless { kusto => $kusto, pg => $pg }, $class;
}

# ---- what the service was asked ----

# The requests of a kind, in order; seen from the first one of the case on.
sub requests
{
	my ($self, $kind) = @_;
	my $is = $kinds{$kind} // die "no such kind of request: $kind";
	return grep { $_->{seq} > $self->{mark} && $is->() } $self->{kusto}->log;
}

# Seconds since midnight.
sub at
{
	my ($request) = @_;
	my ($h, $m, $s) = $request->{at} =~ /T(\d+):(\d+):([\d.]+)Z/;
	return $h * 3600 + $m * 60 + $s;
}

# Seconds between one request and the next.
sub gaps
{
	my @requests = @_;
	return map { at($requests[$_]) - at($requests[ $_ - 1 ]) } 1 .. $#requests;
}

sub _counts_are
{
	my ($self, $name, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	for my $kind (sort keys %$expected)
	{
		my ($least, $most) = @{ $expected->{$kind} };
		my $count = () = $self->requests($kind);
		ok($count >= $least && $count <= $most, "$name: $kind, $count times" . ($least == $most ? '' : " ($least to $most)"))
		  or diag "expected $least to $most", explain $self->{pg}->recent_requests;
	}
	return;
}

# ---- one case ----

# Settings of the server, by ALTER SYSTEM, and of this case only.
sub _configure_server
{
	my ($self, $settings) = @_;
	my $pg = $self->{pg};
	my @old = @{ $self->{configured} // [] };
	return unless @old || %$settings;
	my %wanted = ((map { $_ => '' } @old), %$settings);
	my @alter = map { "ALTER SYSTEM RESET kusto_ingest.$_" } @old;
	push @alter, map { "ALTER SYSTEM SET kusto_ingest.$_ = '$settings->{$_}'" } sort keys %$settings;
	$pg->sql(join ";\n", "LOAD 'kusto_ingest'", @alter, 'SELECT pg_reload_conf()');
	# What a new process has, hence also the next worker.
	for my $setting (sort keys %wanted)
	{
		$pg->poll("SELECT coalesce(current_setting('kusto_ingest.$setting', true), '') = '$wanted{$setting}'");
	}
	$self->{configured} = [ sort keys %$settings ];
	return;
}

sub _begin
{
	my ($self, $case) = @_;
	my ($kusto, $pg) = @$self{qw(kusto pg)};
	$kusto->reset;
	$pg->forget_worker;
	$self->_configure_server($case->{server} // {});
	$kusto->config(%{ $case->{config} }) if $case->{config};
	$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, s:string');
	$self->{operations} = $pg->sql('SELECT count(*) FROM kusto.operations');
	$self->{mark} = -1;

	my $export = $exports{ $case->{export} // 'row' };
	my %settings = (%{ $export->{settings} // {} }, %{ $case->{settings} // {} });
	my $session = $pg->session;
	$session->sql(join ';', map { "SET kusto_ingest.$_ = '$settings{$_}'" } sort keys %settings) if %settings;
	$self->_warm($session) if $case->{warm};
	$kusto->fault(@$_) for @{ $case->{faults} // [] };
	return ($session, $export);
}

# Session and worker know tokens and resources; their requests are not counted.
sub _warm
{
	my ($self, $session) = @_;
	my ($kusto, $pg) = @$self{qw(kusto pg)};
	$kusto->create_table(KustoCluster::DATABASE, 'Warm', 'i:int');
	$pg->finished($session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'Warm')));
	$self->{operations}++;
	my @log = $kusto->log;
	$self->{mark} = $log[-1]{seq};
	return;
}

# Case: export (row, blocks, blobs) and arguments of the call; async; settings of the session,
# server settings; config and faults of the service; warm; and what is expected: either error (as
# KustoCluster::error_is), or state, rows, blobs (their states); then requests
# (kind => [ least, most ]), seconds ([ least, most ] of the call), fired (least number of faults).
# Code: before gets the session before the call, during is called while the call is under way,
# meanwhile gets the operation's id and the session when the call has succeeded, checks gets the
# operation's row, or undef, at the end.
sub run
{
	my ($self, $name, %case) = @_;
	my ($kusto, $pg) = @$self{qw(kusto pg)};
	my $began = time;
	my ($session, $export) = $self->_begin(\%case);
	$case{before}->($session) if $case{before};
	my $call = 'SELECT ' . $pg->ingest_call($export->{query}, 'T', %{ $case{arguments} // {} });
	$call =~ s/kusto_ingest\(/kusto_ingest_async(/ if $case{async};
	$session->send($call);
	my ($seconds, $outcome) = elapsed(sub {
		$case{during}->() if $case{during};
		return $session->receive;
	});
	my ($id, $error) = ($outcome->{out}, KustoCluster::parse_error($outcome->{err}));

	my $operation;
	if ($case{error})
	{
		$self->_has_failed($name, $error, $case{error});
	}
	elsif ($error)
	{
		fail("$name: the call");
		diag $error->{text}, explain $pg->recent_requests;
	}
	else
	{
		$case{meanwhile}->($id, $session) if $case{meanwhile};
		$operation = $self->_has_ended($name, $id, $export, \%case);
	}
	if (my $limits = $case{seconds})
	{
		my ($least, $most) = @$limits;
		ok($seconds >= $least && $seconds <= $most, sprintf '%s: the call takes %s to %s s', $name, $least, $most)
		  or diag sprintf '%.1f s', $seconds;
	}
	$self->_counts_are($name, $case{requests} // {});
	cmp_ok($kusto->fired, '>=', $case{fired} // 1, "$name: it happened") if $case{faults};
	$case{checks}->($operation, $error) if $case{checks};
	$session->quit;
	$kusto->assert_no_violations("$name: no violation");
	$kusto->forgive_violations;
	note sprintf '%s: %.1f s', $name, time - $began;
	return $operation;
}

# The statement has raised, and it is as if it had never been.
sub _has_failed
{
	my ($self, $name, $error, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 2;
	my ($kusto, $pg) = @$self{qw(kusto pg)};
	unless ($error)
	{
		fail("$name: the call fails");
		diag explain $pg->recent_requests;
		return;
	}
	$pg->error_is($error, $expected, "$name: the cause is told");
	is($pg->sql('SELECT count(*) FROM kusto.operations'), $self->{operations}, "$name: nothing is recorded");
	is(scalar(grep { $_->{seq} > $self->{mark} && $_->{service} eq 'queue' } $kusto->log), 0, "$name: nothing is posted");
	is($kusto->count(KustoCluster::DATABASE, 'T'), 0, "$name: no row arrives");
	return;
}

sub _has_ended
{
	my ($self, $name, $id, $export, $case) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 2;
	my ($kusto, $pg) = @$self{qw(kusto pg)};
	my $state = $case->{state} // 'succeeded';
	my $operation = $pg->ends_as($id, $state, "$name: $state");
	my %states;
	$states{ $_->{state} }++ for @{ $pg->blobs($id) };
	is_deeply([ sort keys %states ], [ sort @{ $case->{blobs} // [$state] } ], "$name: the states of the blobs")
	  or diag explain \%states;
	$kusto->settle;
	is($kusto->count(KustoCluster::DATABASE, 'T'), $case->{rows} // ($state eq 'succeeded' ? $export->{rows} : 0),
		"$name: rows in Kusto");
	return $operation;
}

1;
