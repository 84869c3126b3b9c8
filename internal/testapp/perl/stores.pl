#!/usr/bin/perl
# Apache::Session::Browseable with indexes, as LemonLDAP::NG uses it: see stores.go.
use strict;
use warnings;
use JSON;
use Apache::Session::Browseable::Redis;

my ($url, $kept) = @ARGV;
my $class = 'Apache::Session::Browseable::Redis';

sub at {
    my ($server, $database) = $_[0] =~ m{^redis://([^/]+)/(\d+)$} or die;
    return {server => $server, database => $database, Index => 'uid ipAddr'};
}

sub say { print "$_[0]: ", JSON->new->canonical->allow_nonref->encode($_[1]), "\n" }

my $args = at($url);

sub page {
    my ($id, $do) = @_;
    my %s;
    eval { tie %s, $class, $id, $args; 1 } or return 'none';
    my %before = %s;
    $id = $s{_session_id};
    delete $before{_session_id};
    $do->(\%s) if $do;
    untie %s;
    return \%before, $id;
}

# found has what users were found, by a name of the session.
sub found {
    my ($all) = @_;
    return [sort map { $_->{name} // 'nobody' } values %$all];
}

say('unknown id', page('0123456789abcdef' x 4));
my ($before, $a) = page(undef, sub { @{$_[0]}{qw(name uid ipAddr)} = ('a', 'dwho', '::1') });
my (undef, $b) = page(undef, sub { @{$_[0]}{qw(name uid ipAddr)} = ('b', 'dwho', '192.0.2.1') });
my (undef, $c) = page(undef, sub { @{$_[0]}{qw(name uid)} = ('c', 'John Doe') });
say('read', (page($a))[0]);
say('change', (page($a, sub { $_[0]->{text} = 'x' x 100000 }))[0]);
say('read', length((page($a))[0]->{text}));
page($a, sub { delete $_[0]->{text} });
say('by an index', found($class->searchOn($args, 'uid', 'dwho')));
say('by an index with a space', found($class->searchOn($args, 'uid', 'John Doe')));
say('by another index', found($class->searchOn($args, 'ipAddr', '::1')));
say('by no index', found($class->searchOn($args, 'name', 'b')));
say('nobody', found($class->searchOn($args, 'uid', 'rtyler')));
say('all', found($class->get_key_from_all_sessions($args)));
say('a field of all', found($class->get_key_from_all_sessions($args, ['name'])));
my %s;
tie %s, $class, $b, $args;
tied(%s)->delete;
untie %s;
say('destroyed', page($b));
say('by an index', found($class->searchOn($args, 'uid', 'dwho')));
say('all', found($class->get_key_from_all_sessions($args)));
for (1 .. 20) { page($a, sub { $_[0]->{n}++ }) }
$args = at($kept);
say('kept', (page($a))[0]);
say('kept', found($class->searchOn($args, 'uid', 'John Doe')));
