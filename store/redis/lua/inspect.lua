#!lua flags=no-writes
-- KEYS: the key. Answers its value and PTTL.
return {0, redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
