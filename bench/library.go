package main

// library compares session libraries for net/http on one Redis.
func (r *run) library() error {
	redis, err := r.redis()
	if err != nil {
		return err
	}
	return r.libraryProbes(redis.addr)
}
