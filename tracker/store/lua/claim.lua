-- Binds an Idempotency-Key to a body in the key's own shard, for sessions whose task puts them into another one.
--
-- ARGV    4 idempotency key  5 fingerprint  6 life (ms; 0 gives a claim back: no session came of it)
-- reply   {claimed} (also when the same body did before) | {mismatch} | {released}
-- effects the hash `idem:<key>`, with the fingerprint and how many claims have not been given back: a session may have
--         come of any of them, so with the last one it goes
local record = ARGV[1] .. 'idem:' .. ARGV[4]
local found = redis.call('HMGET', record, 'fingerprint', 'claims')
local known, claims = found[1], tonumber(found[2] or 0)
if known and known ~= ARGV[5] then return {'mismatch'} end
if ARGV[6] == '0' then
  if claims > 1 then redis.call('HINCRBY', record, 'claims', -1) else redis.call('DEL', record) end
  return {'released'}
end
redis.call('HSET', record, 'fingerprint', ARGV[5], 'claims', ms(claims + 1))
if not known then redis.call('PEXPIRE', record, ARGV[6]) end
return {'claimed'}
