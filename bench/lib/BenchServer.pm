# BenchServer: the PostgreSQL that is measured: one psql that stays connected, pgbench, and the
# extension's worker, which can be held still.
#
# Where the server is, PGHOST and its kin say. Every method dies with what psql has said.
package BenchServer;

use strict;
use warnings;

use Carp;
use Exporter qw(import);
use IPC::Open2;
use Time::HiRes qw(time);

our @EXPORT_OK = qw(wait_until parameter);

my $held;

# A parameter of the benchmark, BENCH_RUNS for instance: a positive number.
sub parameter
{
	my ($name, $default) = @_;
	my $value = $ENV{$name} // $default;
	die "$name must be a positive number, and not '$value'\n" unless $value =~ /^[1-9]\d*$/;
	return $value;
}

# Waiting for an event that nobody tells us of.
sub wait_until
{
	my ($condition, $what, $seconds) = @_;
	my $deadline = time + ($seconds // 60);
	until ($condition->())
	{
		croak "waited in vain: $what" if time > $deadline;
		select undef, undef, undef, 0.02;
	}
	return;
}

sub new
{
	my ($class) = @_;
	my $self = bless { count => 0 }, $class;
	$self->{pid} = open2($self->{out}, $self->{in}, 'exec psql -XAtq -v ON_ERROR_STOP=1 2>&1');
	return $self;
}

# The output, without the last line's end.
sub sql
{
	my ($self, $sql) = @_;
	my $mark = 'end of statement ' . ++$self->{count};
	my $said = '';

	print { $self->{in} } "$sql\n;\n\\echo '$mark'\n";
	$self->{in}->flush;
	while (defined(my $line = readline $self->{out}))
	{
		if ($line eq "$mark\n")
		{
			chomp $said;
			return $said;
		}
		$said .= $line;
	}
	croak "psql has ended: $said\nin: $sql";
}

# For a process that was forked: the psql is its parent's.
sub forget
{
	my ($self) = @_;
	close $self->{$_} for qw(in out);
	undef $held;
	return;
}

# Seconds that it takes, and bytes of WAL that were written meanwhile.
sub timed
{
	my ($self, $sql) = @_;
	my $lsn = $self->sql('SELECT pg_current_wal_insert_lsn()');
	my $began = time;
	$self->sql($sql);
	my $seconds = time - $began;
	my $wal = $self->sql("SELECT pg_current_wal_insert_lsn() - '$lsn'");
	return wantarray ? ($seconds, $wal) : $seconds;
}

# Parameters of the server, for the sessions from now on.
sub set
{
	my ($self, %settings) = @_;
	my $before = $self->sql('SELECT pg_conf_load_time()');
	$self->sql("ALTER SYSTEM SET $_ = '$settings{$_}'") for sort keys %settings;
	$self->sql('SELECT pg_reload_conf()');
	# The postmaster, whose children new sessions are, reads the file before it tells this one.
	wait_until(sub { $self->sql('SELECT pg_conf_load_time()') ne $before }, 'the settings are read');
	return;
}

# ---- pgbench ----

my $scripts = 0;

sub _script_file
{
	my ($script) = @_;
	my $file = "$ENV{BENCH_WORK}/script" . ++$scripts . '.sql';
	open my $out, '>', $file or die "$file: $!";
	print $out $script;
	close $out or die "$file: $!";
	return $file;
}

# A thread for each client: of two in a thread, how often both are ready at once decides what pgbench itself
# spends on a transaction (README.md).
sub _pgbench_command
{
	my (%options) = @_;
	my $clients = $options{clients} // 4;
	my @command = ('pgbench', '-n', '-M', 'prepared', '-c', $clients, '-j', $clients);
	push @command, $options{transactions} ? ('-t', $options{transactions}) : ('-T', $options{seconds});
	push @command, '-R', $options{rate} if $options{rate};
	push @command, $options{options} if $options{options};
	return @command;
}

# From what pgbench has said.
sub _rate
{
	my ($said) = @_;
	my ($tps) = $said =~ /^tps = ([\d.]+) \(without initial connection time\)/m;
	# Before version 14 it is called so.
	($tps) = $said =~ /^tps = ([\d.]+) \(excluding connections establishing\)/m unless $tps;
	die "pgbench: $said" if !$tps || $said =~ /aborted/;
	return $tps;
}

# Options: clients (4), seconds or transactions (of each client), rate, options. Returns transactions
# a second without the time to connect, and the command.
sub pgbench
{
	my ($self, $script, %options) = @_;
	my $file = _script_file($script);
	my @command = _pgbench_command(%options);
	my $said = qx(@command -f $file 2>&1);
	die "@command: $said" if $?;
	unlink $file;
	return wantarray ? (_rate($said), "@command") : _rate($said);
}

# The same, with clients spread over the processors, and the process of each one's session on the client's: where
# the scheduler puts them is not left to chance. One that they cannot be spread over evenly is not in use.
sub pgbench_placed
{
	my ($self, $script, %options) = @_;
	my @processors = _processors();
	my $clients = $options{clients} // 4;
	pop @processors while $clients % @processors;
	my $each = $clients / @processors;
	my $file = _script_file($script);
	my @command = _pgbench_command(%options, clients => $each);
	my @running;

	for my $processor (@processors)
	{
		local $ENV{PGAPPNAME} = "placed on $processor";
		# Begun at the same time they might draw the same keys.
		my $seed = 1000 * $scripts + $processor;
		open my $said, '-|', "taskset -c $processor @command --random-seed=$seed -f $file 2>&1" or die "pgbench: $!";
		push @running, $said;
	}
	$self->_place($_, $each) for @processors;
	my $rate = 0;
	for my $said (@running)
	{
		local $/;
		$rate += _rate(scalar readline $said);
		close $said or die "pgbench: $!";
	}
	unlink $file;
	return wantarray ? ($rate, join ' ', @command, 'on each of processors', @processors) : $rate;
}

# Those that this process may use.
sub _processors
{
	open my $status, '<', '/proc/self/status' or die "/proc/self/status: $!";
	my ($list) = map { /^Cpus_allowed_list:\s*(\S+)/ } <$status>;
	return map { /^(\d+)-(\d+)$/ ? $1 .. $2 : $_ } split ',', $list;
}

sub _place
{
	my ($self, $processor, $sessions) = @_;
	my @pids;
	wait_until(sub {
		@pids = split ' ', $self->sql(<<~SQL);
			SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name = 'placed on $processor'
			SQL
		return @pids == $sessions;
	}, "the sessions of processor $processor are there", 5);
	for my $pid (@pids)
	{
		my $said = qx(taskset -cp $processor $pid 2>&1);
		die "taskset: $said" if $?;
	}
	return;
}

# ---- the worker of kusto_ingest ----

sub worker
{
	my ($self) = @_;
	my $pid = '';
	wait_until(sub {
		$pid = $self->sql("SELECT pid FROM kusto.workers WHERE backend_type = 'kusto_ingest worker' AND pid IS NOT NULL");
		return $pid ne '';
	}, 'there is a worker');
	return $pid;
}

# Stop its process (SIGSTOP), between two transactions: it then costs nothing and keeps nobody waiting.
sub hold_worker
{
	my ($self) = @_;
	return if $held;
	wait_until(sub {
		my $pid = $self->worker;
		kill 'STOP', $pid or die "stopping the worker: $!";
		$held = $pid;
		wait_until(sub { _state($pid) eq 'T' }, 'the worker is stopped');
		return 1 if $self->sql(<<~SQL) eq '0';
			SELECT count(*) FROM pg_locks
			WHERE pid = $pid AND NOT (locktype = 'advisory' AND objsubid = 19285 AND objid IN (1, 2))
			SQL
		$self->release_worker;
		return 0;
	}, 'the worker is stopped where it holds no lock');
	return;
}

sub release_worker
{
	kill 'CONT', $held if $held;
	undef $held;
	return;
}

END
{
	release_worker();
}

sub _state
{
	my ($pid) = @_;
	open my $stat, '<', "/proc/$pid/stat" or return '';
	my ($state) = readline($stat) =~ /\) (\S)/;
	return $state;
}

1;
