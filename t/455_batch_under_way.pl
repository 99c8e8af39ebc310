# A batch keeps its names: the worker reads the list of captures while it is under way, and what it knew of
# them gives its memory to others.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use Outbox;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.flush_interval = 0
	kusto_ingest.naptime = 1s
	CONF
my $outbox = Outbox->new($pg);

# Each time that the list is read a capture gets the memory of the one before it, so the first one's goes from
# one of these to the next: more of them than the list is read here. All names have one length, so that
# they lie at the same places.
my $held = $outbox->capture('c0');
my @others = map { $outbox->capture("c$_") } 1 .. 9;
$outbox->change($_) for @others;
is($outbox->flush, 't', 'a worker is there');
$outbox->arrives($_, '... and sends') for @others;
$pg->sql("UPDATE kusto.capture SET database = 'xx' WHERE id IN (" . join(', ', @others) . ')');

# The request before the one that sends the rows waits for its answer.
$kusto->fault({ service => 'engine', path => 'mgmt', body => 'clear table.*C0' }, { hold => JSON::PP::true });
$outbox->change($held, rows => 3);
wait_until(sub { $kusto->fired == 1 }, 'the batch is under way', 30);
my $late = $outbox->capture('late');
$outbox->change($late);
$outbox->arrives($late, 'the list of captures is read meanwhile');
is($outbox->count($held), 0, 'while the batch waits');
$kusto->release;
$outbox->arrives($held, 'it arrives in its table');
is($outbox->count($_), 1, '... and not in another one') for @others;
is($outbox->streamed($held), 1, '... at the first try');

$kusto->assert_no_violations;
done_testing();
