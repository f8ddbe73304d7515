"""What limits.py has Redis do, each script in one step. All of them begin with PRELUDE.

KEYS[1] is a number for all limits: until when the gates are closed (µs; 0 at the very start). The first two arguments
are the state in which the caller is (fresh, known, lost) and for how long to close the gates when something was lost.
Numbers are written by %.0f, since Lua would write large ones as 1e+15.
"""

from typing import Final

PRELUDE: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local open_at = tonumber(redis.call('GET', KEYS[1]) or '')
if ARGV[1] == 'lost' or (not open_at and ARGV[1] == 'known') then
  open_at = now + ARGV[2]
  redis.call('SET', KEYS[1], string.format('%.0f', open_at))
elseif not open_at then
  open_at = 0
  redis.call('SET', KEYS[1], '0')
end

-- Of one key of slots. KEYS[2]: tokens (worker:number) by when they end. KEYS[3]: claims, worker -> "since until".
local function live_claims()
  local claims, flat = {}, redis.call('HGETALL', KEYS[3])
  for i = 1, #flat, 2 do
    local since, till = string.match(flat[i + 1], '(%d+) (%d+)')
    if tonumber(till) > now then
      claims[flat[i]] = tonumber(since)
    else
      redis.call('HDEL', KEYS[3], flat[i])
    end
  end
  return claims
end

-- How many tokens each worker has.
local function holdings()
  local held = {}
  for _, token in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local worker = string.match(token, '^[^:]+')
    held[worker] = (held[worker] or 0) + 1
  end
  return held
end

-- An equal share for all who hold, claim, or ask now; 0 when there are more of them than slots.
local function share(limit, held, claims, me)
  local workers, number = {[me] = true}, 0
  for worker in pairs(held) do workers[worker] = true end
  for worker in pairs(claims) do workers[worker] = true end
  for _ in pairs(workers) do number = number + 1 end
  return math.floor(limit / number)
end
"""

# ARGV: worker, token, limit, a slot's time, a claim's time. 1 when granted, else 0.
ACQUIRE: Final = """
local me, token, limit, slot_time, claim_time = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
if now < open_at then return 0 end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
local free = limit - redis.call('ZCARD', KEYS[2])
local claims = live_claims()
-- Free slots are first for those with a claim who hold fewer, or as few and have waited longer.
local ahead = 0
if free > 0 and next(claims) then
  local held = holdings()
  local fair = math.max(1, share(limit, held, claims, me))
  local mine, since = held[me] or 0, claims[me] or now
  for worker, at in pairs(claims) do
    local theirs = held[worker] or 0
    if worker ~= me and theirs < fair and (theirs < mine or (theirs == mine and at < since)) then
      ahead = ahead + 1
    end
  end
  -- Its claim has been met; short of a fair share it keeps it, so that it is not outrun by those that have more.
  if free > ahead and mine + 1 >= fair then
    redis.call('HDEL', KEYS[3], me)
  end
end
if free > ahead then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + slot_time), token)
  redis.call('PEXPIRE', KEYS[2], math.ceil(slot_time / 500))
  return 1
end
redis.call('HSET', KEYS[3], me, string.format('%.0f %.0f', claims[me] or now, now + claim_time))
redis.call('PEXPIRE', KEYS[3], math.ceil(claim_time / 500))
return 0
"""

# ARGV: worker, limit, a slot's time, a claim's time, tokens… How many of them to keep; -1: as many as it likes.
RENEW: Final = """
local me, limit, slot_time = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local till = string.format('%.0f', now + slot_time)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
for i = 7, #ARGV do
  redis.call('ZADD', KEYS[2], till, ARGV[i])
end
redis.call('PEXPIRE', KEYS[2], math.ceil(slot_time / 500))
local held, claims = holdings(), live_claims()
local mine, fair = held[me] or 0, share(limit, held, claims, me)
local too_many = redis.call('ZCARD', KEYS[2]) - limit
if too_many > 0 then
  return math.min(mine, math.max(fair, mine - too_many))
end
for worker in pairs(claims) do
  if worker ~= me and mine > fair and (held[worker] or 0) < math.max(1, fair) then
    -- Half of what is too much at a time: who claims may want one only.
    return mine - math.ceil((mine - fair) / 2)
  end
end
return -1
"""

# KEYS[2]: the moment up to which the bucket's tokens are spent. ARGV: wanted, interval, burst, how long they are good.
# {granted, µs until it is worth asking again}.
PERMITS: Final = """
local wanted, interval, burst, hold = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local spent = tonumber(redis.call('GET', KEYS[2]) or '') or 0
spent = math.max(spent, open_at, now - burst * interval)
local granted = math.max(0, math.min(wanted, math.floor((now - spent) / interval)))
spent = spent + granted * interval
local full_in = math.ceil((spent + burst * interval - now) / 1000)
redis.call('SET', KEYS[2], string.format('%.0f', spent), 'PX', full_in + 1)
local all_there = spent + math.min(wanted, burst) * interval - now
return {granted, math.max(spent + interval - now, math.min(all_there, hold))}
"""
