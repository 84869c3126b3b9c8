#!lua flags=no-writes
-- KEYS: the mark. Answers the time in ms, and the mark.
return {0, now, redis.call('GET', KEYS[1])}
