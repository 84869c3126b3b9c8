# Apache::Session::Redis, as the CPAN distribution Apache-Session-NoSQL has it and Debian has not, for tests: the same
# options, the same commands, the same bytes. The key is the bare id, the value Base64 of Storable; no lock, no lifetime.
package Apache::Session::Redis;

use strict;
use warnings;
use parent 'Apache::Session';

use Apache::Session::Generate::MD5;
use Apache::Session::Lock::Null;
use Apache::Session::Serialize::Base64;

sub populate {
    my $self = shift;
    $self->{object_store} = Apache::Session::Redis::Store->new($self);
    $self->{lock_manager} = Apache::Session::Lock::Null->new($self);
    $self->{generate}     = \&Apache::Session::Generate::MD5::generate;
    $self->{validate}     = \&Apache::Session::Generate::MD5::validate;
    $self->{serialize}    = \&Apache::Session::Serialize::Base64::serialize;
    $self->{unserialize}  = \&Apache::Session::Serialize::Base64::unserialize;
    return $self;
}

package Apache::Session::Redis::Store;

use Redis;

# A connection for each session that is opened: one or two a page.
sub new {
    my ( $class, $session ) = @_;
    return bless { redis => Redis->new( %{ $session->{args} } ) }, $class;
}

sub insert {
    my ( $self, $session ) = @_;
    $self->{redis}->set( $session->{data}{_session_id}, $session->{serialized} );
}

*update = \&insert;

sub materialize {
    my ( $self, $session ) = @_;
    $session->{serialized} = $self->{redis}->get( $session->{data}{_session_id} )
        or die 'Object does not exist in data store.';
}

sub remove {
    my ( $self, $session ) = @_;
    $self->{redis}->del( $session->{data}{_session_id} );
}

1;
