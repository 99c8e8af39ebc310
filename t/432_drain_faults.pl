# The crash matrix of the drain (FaultMatrix): an accident at every point between an effect outside of
# PostgreSQL and its mark inside. Nothing is lost; what is queued is there once; what is streamed may be
# there twice, but then with the same _seq.
use strict;
use warnings;

use FaultMatrix;
use JSON::PP;
use KustoCluster qw(wait_until);
use Outbox;
use Test::More;

plan skip_all => 'needs the library with faults, which scripts/test prepares' unless $ENV{KUSTO_FAULTS_POSTGRES};

my $matrix = FaultMatrix->start(conf => "kusto_ingest.flush_interval = 0\nkusto_ingest.max_blob_size = 1MB\n");
my $pg = $matrix->pg;
my $kusto = $matrix->kusto;
my $db = KustoCluster::DATABASE;
my $outbox = Outbox->new($pg);
my $cells = 0;

# Where a streamed batch is in Kusto, and no mark will ever say so.
my %repeats = map { $_ => 1 } qw(drain-streamed:kill drain-streamed:sleep drain-streamed:exit drain-marked:kill drain-marked:sleep);

# Rows that Kusto has, by _seq: how often.
sub landed
{
	my ($id) = @_;
	my (%seqs, %values);
	my @seqs = $outbox->landed($id, '_seq');
	my @values = $outbox->landed($id, 'i');
	for my $k (0 .. $#seqs)
	{
		$seqs{ $seqs[$k] }++;
		$values{ $values[$k] } = $seqs[$k];
	}
	return (\%seqs, \%values);
}

sub cell
{
	my ($point, $action, $scenario, $queued) = @_;
	my $name = "$action at $point, $scenario->{name}";
	my $id = $outbox->capture('cell' . ++$cells, %{ $scenario->{capture} // {} });
	my $table = "Cell$cells";

	$kusto->command($db, ".alter table $table policy streamingingestion disable") if $queued;
	# So that something has been sent before.
	unless ($scenario->{fresh})
	{
		$outbox->change($id, rows => 2);
		is($outbox->flush, 't', "$name: all is well before");
	}
	ok($matrix->strike($point, $action, sub { $scenario->{act}->($id) }), "$name: it happens");
	$outbox->change($id, rows => 2);
	is($outbox->flush, 't', "$name: afterwards all is sent");
	$pg->poll(q(SELECT count(*) = 0 FROM kusto.operation WHERE finished_at IS NULL), 't', "$name: and posted");
	$kusto->settle;

	my ($seqs, $values) = landed($id);
	my @wanted = @{ $outbox->{captures}{$id}{rows} };
	is_deeply([ sort { $a <=> $b } keys %$values ], \@wanted, "$name: nothing is lost");
	is(scalar keys %$seqs, scalar @wanted, "$name: a row that is there twice has one _seq");
	my $repeated = grep { $_ > 1 } values %$seqs;
	my $expected = !$queued && $repeats{"$point:$action"} ? 3 : 0;
	is($repeated, $expected, "$name: the batch is there " . ($expected ? 'twice' : 'once'));
	my $mark = $outbox->mark($id);
	is($mark->{rows}, scalar @wanted, "$name: the mark counts each once");
	ok(!defined $mark->{error_message}, "$name: and is well");
	return;
}

my $small = sub { my ($id) = @_; $outbox->change($id, rows => 3) };
my $large = sub {
	my ($id) = @_;
	$pg->sql('BEGIN; ' . join('; ', map { $outbox->statement($id, rows => 100, text => 'x' x 1000) } 1 .. 60) . '; COMMIT');
};
my $streamed = { name => 'streamed', act => $small };
my $refused = { name => 'streaming refused', act => $small };
my $uploaded = { name => 'in two operations', act => $large };
# The worker truncates what is all sent once a second.
my $truncated = {
	name => 'after a large batch',
	act => sub {
		my ($id) = @_;
		$large->($id);
		$outbox->flush;
	}
};
my $created = { name => 'a new table', act => $small, fresh => 1, capture => { kusto => undef, create_table => 1, accepted => 0 } };

my %scenarios = (
	'drain-read' => [ [ $streamed, 0 ] ],
	'drain-table-created' => [ [ $created, 0 ] ],
	'drain-streamed' => [ [ $streamed, 0 ] ],
	'drain-uploaded' => [ [ $uploaded, 1 ] ],
	'drain-marked' => [ [ $streamed, 0 ], [ $uploaded, 1 ] ],
	'ring-truncated' => [ [ $truncated, 1 ] ],
	'drain-recorded' => [ [ $streamed, 0 ], [ $uploaded, 1 ], [ $refused, 1 ] ]);
for my $point (sort keys %scenarios)
{
	for my $action (@{ $matrix->points->{$point} })
	{
		cell($point, $action, @$_) for @{ $scenarios{$point} };
	}
}

$matrix->done(qr/^(?!drain-|ring-)/);
done_testing();
