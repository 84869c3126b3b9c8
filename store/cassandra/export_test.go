package cassandra

import gocql "github.com/apache/cassandra-gocql-driver/v2"

// Observed returns options with which connections are made by d, and doubt hears of transactions whose outcome is not known.
func (o Options) Observed(d gocql.Dialer, doubt func(error)) Options {
	o.dialer, o.doubt = d, doubt
	return o
}
