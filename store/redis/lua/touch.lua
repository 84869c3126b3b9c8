#!lua flags=allow-oom
-- Answers whether there is a value, and the marker's kind, nonce, ms left and version.
local present = redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {step(), present, m.kind, m.nonce or '', m.till and m.till - now or 0, m.version or 0}
