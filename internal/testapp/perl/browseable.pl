#!/usr/bin/perl
# Apache::Session::Browseable, as LemonLDAP::NG uses it, on its table or in Redis: see testapp.go.
use strict;
use warnings;
use JSON;
use Apache::Session::Browseable::MySQL;
use Apache::Session::Browseable::Postgres;
use Apache::Session::Browseable::Redis;

$| = 1;
my ($scheme, $user, $host, $port, $db) = $ARGV[0] =~ m{^(\w+)://(?:(\w+)@)?([\d.]+):(\d+)/?(\w*)} or die;
my $class = 'Apache::Session::Browseable::' . {mysql => 'MySQL', postgres => 'Postgres', redis => 'Redis'}->{$scheme};
my $args = {
    mysql => {DataSource => "dbi:mysql:database=$db;host=$host;port=$port"},
    postgres => {DataSource => "dbi:Pg:dbname=$db;host=$host;port=$port", Commit => 1},
    redis => {server => "$host:$port"},
}->{$scheme};
if ($scheme eq 'redis') {
    $args->{Index} = '';    # what LemonLDAP::NG would list sessions by are sets
}
else {
    @$args{qw(UserName Password TableName Index)} = ($user, '', 'sessions', '_whatToTrace _session_kind _utime ipAddr');
}

# Its own ids are random; ours are told.
my $wanted;
{
    no warnings 'redefine';
    *Apache::Session::Generate::SHA256::generate = sub { $_[0]->{data}->{_session_id} = $wanted };
}

sub page {
    my ($id, $do) = @_;
    my %s;
    eval { tie %s, $class, $id, $args; 1 } or return 0;
    $do->(\%s);
    untie %s;
    return 1;
}

my %steps = (
    create => sub {
        my $dbh = DBI->connect($args->{DataSource}, $user, '', {RaiseError => 1});
        my $kind = $scheme eq 'mysql' ? ' DEFAULT CHARSET utf8mb4' : '';
        $dbh->do("CREATE TABLE sessions (id varchar(64) not null primary key, a_session text, _whatToTrace text,"
            . " _session_kind text, _utime bigint, ipAddr text)$kind");
    },
    gc => sub {
        $class->deleteIfLowerThan($args, {or => {_utime => time - 3600}});
    },
    read => sub {
        my ($s) = @_;
        my $text = '';
        my $found = page($s->{id}, sub { $text = $_[0]->{text} // '' });
        return {found => $found ? JSON::true : JSON::false, text => $text};
    },
    write => sub {
        my ($s) = @_;
        my $fill = sub {
            my ($session) = @_;
            $session->{_utime} //= time;
            $session->{_session_kind} //= 'SSO';
            $session->{_whatToTrace} //= 'dwho';
            $session->{text} = $s->{text} if defined $s->{text};
        };
        return if page($s->{id}, $fill);
        $wanted = $s->{id};
        page(undef, $fill) or die $@;
    },
    destroy => sub {
        my ($s) = @_;
        my %session;
        tie %session, $class, $s->{id}, $args;
        tied(%session)->delete;
    },
);

while (my $line = <STDIN>) {
    my $s = JSON->new->utf8->decode($line);
    my $answer = eval { $steps{$s->{do}}->($s) };
    $answer = {error => "$@"} if $@;
    $answer = {} unless ref $answer eq 'HASH' and (exists $answer->{found} or exists $answer->{error});
    print JSON->new->utf8->encode($answer), "\n";
}
