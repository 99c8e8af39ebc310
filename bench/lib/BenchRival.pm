# BenchRival: psql's \copy, gzip and Microsoft's Node.js SDK, in a Node.js process that is kept (sdk_rival.mjs).
package BenchRival;

use strict;
use warnings;

use Carp;
use FindBin;
use IPC::Open2;
use JSON::PP;

my $json = JSON::PP->new->utf8->canonical;

sub new
{
	my ($class) = @_;
	my $self = bless {}, $class;
	$self->{pid} = open2($self->{out}, $self->{in}, $ENV{BENCH_NODE}, "$FindBin::Bin/../lib/sdk_rival.mjs");
	$self->_answer eq "ready\n" or croak 'the SDK has not become ready';
	return $self;
}

# how: file or stream. Returns seconds until the message is in the queue, and compressed bytes.
sub export
{
	my ($self, $how, $query, $table) = @_;
	print { $self->{in} } $json->encode({ how => $how, query => $query, table => $table }), "\n";
	$self->{in}->flush;
	my $answer = $json->decode($self->_answer);
	return ($answer->{seconds}, $answer->{bytes});
}

sub _answer
{
	my ($self) = @_;
	return readline($self->{out}) // croak 'the process with the SDK has ended';
}

sub close
{
	my ($self) = @_;
	close $self->{in};
	close $self->{out};
	waitpid $self->{pid}, 0;
	return;
}

1;
