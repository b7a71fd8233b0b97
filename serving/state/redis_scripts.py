"""The Lua scripts of the Redis store: each runs whole or not at all, and may be run again."""

# ARGV: prefix, event ttl, user ttl, step limit, mark limit, then per event nine values:
# id, body, received_ms, user, step, seen bucket, seen ttl, video, number of marks, then kind and id of each
ACCEPT = """
local prefix, at, fresh = ARGV[1], 6, {}
while at <= #ARGV do
  local id, body, now, user, step = ARGV[at], ARGV[at+1], ARGV[at+2], ARGV[at+3], ARGV[at+4]
  local bucket, ttl, video, marks = ARGV[at+5], ARGV[at+6], ARGV[at+7], tonumber(ARGV[at+8])
  local new = redis.call('SET', prefix..'event:'..id, '', 'NX', 'PX', ARGV[2])
  if new then
    local seq = redis.call('INCR', prefix..'events:seq')
    redis.call('XADD', prefix..'events', seq..'-0', 't', now, 'e', body)
    local base = prefix..'u:'..user
    redis.call('RPUSH', base..':steps', step)
    redis.call('LTRIM', base..':steps', -tonumber(ARGV[4]), -1)
    redis.call('PEXPIRE', base..':steps', ARGV[3])
    redis.call('SADD', base..':seen:'..bucket, video)
    redis.call('PEXPIRE', base..':seen:'..bucket, ttl)
    for mark = 0, marks - 1 do
      local key = base..':'..ARGV[at+9+2*mark]
      redis.call('ZADD', key, now, ARGV[at+10+2*mark])
      redis.call('ZREMRANGEBYRANK', key, 0, -tonumber(ARGV[5]) - 1)
      redis.call('PEXPIRE', key, ARGV[3])
    end
    redis.call('SET', prefix..'known', 1)
    fresh[#fresh+1] = 1
  else
    fresh[#fresh+1] = 0
  end
  at = at + 9 + 2*marks
end
return fresh
"""

# ARGV: prefix, session, page, user, packed videos, body, log, time, session ttl, served bucket, served ttl,
# number of tallies, then key, add, ttl and limit ('' for none) of each, then every video
COMMIT = """
local session = ARGV[1]..'s:'..ARGV[2]
local page, user = tonumber(ARGV[3]), redis.call('HGET', session, 'user')
if not user and page > 0 then return false end
if user then
  local pages = tonumber(redis.call('HGET', session, 'pages'))
  if user ~= ARGV[4] or page > pages then return false end
  if page < pages then return redis.call('HGET', session, ARGV[3]) end
end
local tallies = tonumber(ARGV[12])
for at = 13, 12 + 4*tallies, 4 do
  local count = tonumber(redis.call('GET', ARGV[1]..'tally:'..ARGV[at]) or '0') + tonumber(ARGV[at+1])
  if ARGV[at+3] ~= '' and count > tonumber(ARGV[at+3]) then return {ARGV[at]} end
end
for at = 13, 12 + 4*tallies, 4 do
  redis.call('INCRBY', ARGV[1]..'tally:'..ARGV[at], ARGV[at+1])
  redis.call('PEXPIRE', ARGV[1]..'tally:'..ARGV[at], ARGV[at+2])
end
redis.call('HSET', session, 'user', ARGV[4], 'pages', page + 1, ARGV[3], ARGV[6], ARGV[3]..':log', ARGV[7])
redis.call('RPUSH', session..':videos', ARGV[5])
redis.call('PEXPIRE', session, ARGV[9])
redis.call('PEXPIRE', session..':videos', ARGV[9])
local seq = redis.call('INCR', ARGV[1]..'pages:seq')
redis.call('XADD', ARGV[1]..'pages', seq..'-0', 't', ARGV[8], 'l', ARGV[7])
local first = 13 + 4*tallies
if #ARGV >= first then
  local served = ARGV[1]..'u:'..ARGV[4]..':served:'..ARGV[10]
  for at = first, #ARGV do redis.call('SADD', served, ARGV[at]) end
  redis.call('PEXPIRE', served, ARGV[11])
end
return ARGV[6]
"""
