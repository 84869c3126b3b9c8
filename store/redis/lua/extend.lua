#!lua flags=allow-oom
-- KEYS: the key. ARGV: lifetime in ms. Answers whether there is something.
return {0, redis.call('PEXPIRE', KEYS[1], ARGV[1])}
