# BenchKusto: the control interface of the local Kusto service, whose address KUSTO_CONTROL_URI is.
package BenchKusto;

use strict;
use warnings;

use Carp;
use HTTP::Tiny;
use JSON::PP;

my $json = JSON::PP->new->utf8->allow_nonref;

sub new
{
	my ($class) = @_;
	return bless { http => HTTP::Tiny->new(timeout => 600), at => $ENV{KUSTO_CONTROL_URI} }, $class;
}

sub call
{
	my ($self, $method, $path, $body) = @_;
	my %options;
	%options = (headers => { 'Content-Type' => 'application/json' }, content => $json->encode($body)) if defined $body;
	my $answer = $self->{http}->request($method, $self->{at} . $path, \%options);
	croak "kusto-local: $method $path: $answer->{status} $answer->{content}" unless $answer->{success};
	return length $answer->{content} ? $json->decode($answer->{content}) : undef;
}

# Rows that a query sees now; 0 when there is no such table yet.
sub count
{
	my ($self, $table) = @_;
	my ($found) = grep { $_->{table} eq $table } @{ $self->call('GET', '/tables?db=bench') };
	return $found ? $found->{rows} : 0;
}

sub extents { my ($self, $table) = @_; return $self->call('GET', "/extents?db=bench&table=$table") }
sub rows { my ($self, $table) = @_; return $self->call('GET', "/rows?db=bench&table=$table") }

# What a test would not forgive must not make a benchmark fast.
sub assert_no_violations
{
	my ($self) = @_;
	my $violations = $self->call('GET', '/violations');
	croak 'the service has seen violations of the protocol: ' . $json->encode($violations) if @$violations;
	return;
}

1;
