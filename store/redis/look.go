package redis

// What somebody needs who looks at the servers beside a store, with connections of his own (`sessile doctor`).

// Completed returns the options with every default in its place, or says what cannot work.
func (o Options) Completed() (Options, error) {
	err := o.complete()
	return o, err
}

// Secret is the password of the data servers, "" where there is none.
func (o Options) Secret() (string, error) { return o.password() }

// Secret is the password of the Sentinels, "" where there is none.
func (o SentinelOptions) Secret() (string, error) { return password(o.Password, o.PasswordFile) }
