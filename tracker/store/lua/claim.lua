-- Binds an Idempotency-Key to a body in the key's own shard, for sessions whose task puts them into another one.
--
-- ARGV    4 idempotency key  5 fingerprint  6 life (ms; 0 gives the key back: no session came of it)
-- reply   {claimed} (also when the same body did before) | {mismatch} | {released}
-- effects the hash `idem:<key>`, with the fingerprint alone
local record = ARGV[1] .. 'idem:' .. ARGV[4]
local known = redis.call('HGET', record, 'fingerprint')
if known and known ~= ARGV[5] then return {'mismatch'} end
if ARGV[6] == '0' then
  redis.call('DEL', record)
  return {'released'}
end
if not known then
  redis.call('HSET', record, 'fingerprint', ARGV[5])
  redis.call('PEXPIRE', record, ARGV[6])
end
return {'claimed'}
