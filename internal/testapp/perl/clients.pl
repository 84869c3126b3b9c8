#!/usr/bin/perl
# Redis.pm or Redis::Fast, told to find the server through Sentinels, does what a session handler does; or with one of them
# a session of Apache::Session::Browseable is made, changed, read and deleted: see clients.go.
use strict;
use warnings;
use JSON;

my ($library, $for, $addresses, $service) = @ARGV;
my @nodes = split /,/, $addresses;

sub say_ { print "$_[0]: ", JSON->new->allow_nonref->encode($_[1]), "\n" }
sub where { $_[0] =~ /laddr=(\S+)/; $1 }
sub truth { $_[0] ? JSON::true : JSON::false }

if ($for eq 'sessions') {
    # It takes Redis::Fast where there is one.
    unshift @INC, sub { die if $_[1] eq 'Redis/Fast.pm'; return } if $library eq 'Redis';
    require Apache::Session::Browseable::Redis;
    my $args = {sentinels => join(', ', @nodes), service => $service, Index => '', name => 'lemonldap'};
    my $page = sub {
        my ($id, $do) = @_;
        tie my %session, 'Apache::Session::Browseable::Redis', $id, $args;
        my $answer = $do->(\%session);
        untie %session;
        return $answer;
    };
    my $redis = sub { tied(%{$_[0]})->{object_store}->{cache} };
    say_('where', $page->(undef, sub { where($redis->($_[0])->client('INFO')) }));
    say_('library', $page->(undef, sub { ref $redis->($_[0]) }));
    my $id = $page->(undef, sub { $_[0]->{text} = 'v'; $_[0]->{_session_id} });
    say_('change', $page->($id, sub { $_[0]->{text} .= 'w' }));
    say_('read', $page->($id, sub { $_[0]->{text} }));
    $page->($id, sub { tied(%{$_[0]})->delete });
    say_('read', eval { $page->($id, sub { 'something' }) });
    exit;
}

eval "require $library" or die $@;
my $r = $library->new(sentinels => \@nodes, service => $service, reconnect => 1, every => 100_000, name => 'app');
say_('where', where($r->client('INFO')));
say_('get', scalar $r->get('k'));
say_('setex', truth($r->setex('k', 100, 'v') eq 'OK'));
say_('get', scalar $r->get('k'));
say_('expire', $r->expire('k', 200) + 0);
say_('ttl', truth($r->ttl('k') > 100));
say_('lock', truth($r->set('k_LOCK', 'me', 'PX', 30000, 'NX')));
say_('lock', truth($r->set('k_LOCK', 'you', 'PX', 100, 'NX')));
say_('release', $r->eval('if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end', 1, 'k_LOCK', 'me') + 0);
say_('exists', $r->exists('k') + 0);
say_('del', $r->del('k') + 0);
my @set;
$r->setex($_, 100, $_ . '1', sub { push @set, truth($_[0] eq 'OK') }) for qw(a b c);
$r->wait_all_responses;
say_('pipeline', \@set);
say_('mget', [$r->mget('a', 'b', 'nokey', 'c')]);
say_('del', $r->del('a', 'b') + 0);
say_('unlink', $r->unlink('b', 'c') + 0);
$r->quit;
