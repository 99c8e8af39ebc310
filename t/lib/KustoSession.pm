# KustoSession: one psql that stays connected, and statements that need not be waited for.
#
#   my $session = $pg->session;
#   $session->sql('SELECT 1');              # the output; dies when the statement fails
#   my $error = $session->fails('SELECT');  # see KustoCluster::parse_error
#   $session->send('SELECT pg_sleep(10)');  # under way now
#   my $outcome = $session->receive;        # { out, err, lost }
#
# Made by KustoCluster::session.
package KustoSession;

use strict;
use warnings;

use Carp;
use IPC::Run ();
use Test::More;

sub new
{
	my ($class, $node, $dbname, %options) = @_;
	my $self = bless { in => '', out => '', err => '', count => 0 }, $class;
	my $connstr = $node->connstr($dbname);
	$connstr .= " user=$options{user}" if defined $options{user};

	local %ENV = $node->_get_env() if $node->can('_get_env');
	$self->{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $connstr, '-f', '-' ],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err},
		$self->{timeout} = IPC::Run::timeout($options{timeout} // 300));
	$self->{pid} = $self->sql('SELECT pg_catalog.pg_backend_pid()');
	return $self;
}

# The backend's process.
sub pid { return $_[0]->{pid} }

sub send
{
	my ($self, $sql) = @_;
	croak 'the last statement has not been received' if defined $self->{mark};
	my $mark = 'statement ' . ++$self->{count} . ' has ended';
	$self->{mark} = $mark;
	$self->{in} .= "$sql\n;\n\\echo '$mark'\n\\warn '$mark'\n";
	$self->{run}->pump_nb;
	return;
}

# lost: the connection is gone.
sub receive
{
	my ($self) = @_;
	my $mark = delete $self->{mark} // croak 'no statement has been sent';
	my $lost = 0;
	until ($self->{out} =~ /\Q$mark\E\n/ && $self->{err} =~ /\Q$mark\E\n/)
	{
		unless ($self->{run}->pumpable)
		{
			$lost = 1;
			last;
		}
		$self->{run}->pump;
	}
	my %outcome = (lost => $lost);
	for my $stream (qw(out err))
	{
		$outcome{$stream} = $self->{$stream};
		$outcome{$stream} =~ s/\n?\Q$mark\E\n//;
		$self->{$stream} = '';
	}
	return \%outcome;
}

sub sql
{
	my ($self, $sql) = @_;
	$self->send($sql);
	my $outcome = $self->receive;
	croak "statement failed: $sql\n$outcome->{err}" if $outcome->{lost} || $outcome->{err} =~ /^(?:psql:.*?: )?(?:ERROR|FATAL|error):/m;
	return $outcome->{out};
}

# Whatever happens: the statement's output, and its error as from fails(), or undef.
sub try
{
	my ($self, $sql) = @_;
	$self->send($sql);
	my $outcome = $self->receive;
	return ($outcome->{out}, KustoCluster::parse_error($outcome->{err}));
}

sub fails
{
	my ($self, $sql) = @_;
	my ($out, $error) = $self->try($sql);
	croak "statement did not fail: $sql\n$out" unless $error;
	return $error;
}

sub quit
{
	my ($self) = @_;
	return unless $self->{run};
	my $run = delete $self->{run};
	$self->{in} .= "\\q\n" if $run->pumpable;
	eval { $run->finish };
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@);
	$self->quit;
	return;
}

1;
