"""The Lua texts that run in the server, for Redis 6.2 and later and for Valkey.

Here: ownership, definitions, remembered answers, events. Those for runs: `scripts_runs`.

Rules all of them keep: every key comes in KEYS; whoever writes compares the fencing token first;
everything that can refuse is tested before the first write, because a script that fails half way
is not undone; only absolute values are written. Answers are one letter: `o` done, `f` fenced,
`l` bound reached, the others are said at the script.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple


class Script(NamedTuple):
    """A text and the name the server knows it by."""

    text: str
    sha: str


def script(*parts: str) -> Script:
    text = "\n".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


CLOCK = """
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""

# Remembered answers: a string with TTL each, and their digests by expiry to count them.
ANSWERS = """
local function room(zset, member, bound, now)
  if redis.call('ZSCORE', zset, member) then return bound end
  return bound - redis.call('ZCOUNT', zset, '(' .. now, '+inf')
end
local function outlive(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end
local function remember(key, zset, member, data, ttl, now)
  redis.call('ZREMRANGEBYSCORE', zset, '-inf', now)
  redis.call('SET', key, data, 'PX', ttl)
  redis.call('ZADD', zset, now + ttl, member)
  outlive(zset, ttl)
end
"""

ACQUIRE: Final = script(
    CLOCK,
    """
local noted = redis.call('GET', KEYS[3])
local newest = noted and tonumber(string.match(noted, '^%d+') or '1e9') or 0
local mine = tonumber(string.match(ARGV[3], '^%d+'))
if newest > mine then return {-1, noted, 0, ''} end
local held = redis.call('GET', KEYS[1])
if held then
  local left = redis.call('PTTL', KEYS[1])
  return {0, held, left, tostring(now_ms() + left)}
end
redis.call('DEL', KEYS[1])
local fence = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], fence .. ' ' .. ARGV[1], 'PX', ARGV[2])
if newest < mine then redis.call('SET', KEYS[3], ARGV[3]) end
return {fence, '', 0, ''}
""",
)
"""KEYS lease fence format; ARGV owner lease-ms note. {token, '', 0, ''}; it is held:
{0, lease, ms left, server ms of its end}; a newer release has owned it: {-1, note, 0, ''}.
A store that is full can be owned, or nobody could make room in it: DEL needs no memory, and a
script that has written is not refused any more."""

RENEW: Final = script("""
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'f' end
local mine = ARGV[1] .. ' ' .. ARGV[2]
local held = redis.call('GET', KEYS[1])
if held == mine then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 'o'
end
if held then return 'f' end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], mine, 'PX', ARGV[3])
return 'o'
""")
"""KEYS lease fence; ARGV token owner lease-ms. A lease that ran out and nobody took is ours.
A store that is full keeps its owner (see `ACQUIRE`)."""

MEMORY: Final = script("return redis.call('INFO', 'memory')")

RELEASE: Final = script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'o'
""")
"""KEYS lease; ARGV lease text."""

REMEMBER: Final = script(
    CLOCK,
    ANSWERS,
    """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 'f' end
local now = now_ms()
if room(KEYS[3], ARGV[4], tonumber(ARGV[2]), now) <= 0 then return 'l' end
remember(KEYS[2], KEYS[3], ARGV[4], ARGV[3], tonumber(ARGV[5]), now)
return 'o'
""",
)
"""KEYS fence answer answers; ARGV token bound data digest ttl-ms."""

PUT_RECORD: Final = script(
    CLOCK,
    ANSWERS,
    """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 'f' end
local id, project, data, revision, created = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local slug = ARGV[7] == '1' and ARGV[8] or false
local old = redis.call('HMGET', KEYS[2], 'n', 'p', 'v', 'g', 'c')
if old[1] then
  if old[1] == revision and old[2] == project and old[3] == data and old[4] == slug
    and old[5] == created then return 'o' end
  if old[2] ~= project or tonumber(revision) ~= old[1] + 1 then return 'r' end
elseif revision ~= '1' then
  return 'r'
end
if slug then
  local taken = redis.call('HGET', KEYS[3], slug)
  if taken and taken ~= id then return 's' end
end
local beside = ARGV[9] == '1'
local k, a = beside and 8 or 5, beside and 13 or 9
if KEYS[k + 1] then
  local answer, answers, now = KEYS[k + 1], KEYS[k + 2], now_ms()
  if room(answers, ARGV[a + 3], tonumber(ARGV[a + 1]), now) <= 0 then return 'l' end
  remember(answer, answers, ARGV[a + 3], ARGV[a + 2], tonumber(ARGV[a + 4]), now)
end
if beside then
  redis.call('HSET', KEYS[6], 'p', ARGV[11], 'v', ARGV[12], 'n', 1, 'c', ARGV[13])
  redis.call('ZADD', KEYS[7], 0, '*' .. ARGV[13] .. ARGV[10])
  redis.call('ZADD', KEYS[8], 0, '*' .. ARGV[13] .. ARGV[10])
end
if old[4] and old[4] ~= slug then
  redis.call('HDEL', KEYS[3], old[4])
  redis.call('HDEL', KEYS[2], 'g')
end
if old[5] and old[5] ~= created then
  redis.call('ZREM', KEYS[4], '*' .. old[5] .. id)
  redis.call('ZREM', KEYS[5], '*' .. old[5] .. id)
end
redis.call('HSET', KEYS[2], 'p', project, 'v', data, 'n', revision, 'c', created)
if slug then
  redis.call('HSET', KEYS[2], 'g', slug)
  redis.call('HSET', KEYS[3], slug, id)
end
redis.call('ZADD', KEYS[4], 0, '*' .. created .. id)
redis.call('ZADD', KEYS[5], 0, '*' .. created .. id)
return 'o'
""",
)
"""KEYS fence record slugs records-of-kind records-of-project [the record beside it: record
records-of-kind records-of-project] [answer answers]; ARGV token id project data revision
created(12 hexadecimal digits) has-slug slug has-beside [id project data created]
[bound data digest ttl-ms]."""

DELETE_RECORD: Final = script("""
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 'f' end
local old = redis.call('HMGET', KEYS[2], 'p', 'g', 'c')
if not old[1] then return 'n' end
if old[1] ~= ARGV[3] then return 'm' end
redis.call('DEL', KEYS[2])
if old[2] then redis.call('HDEL', KEYS[3], old[2]) end
redis.call('ZREM', KEYS[4], '*' .. old[3] .. ARGV[2])
redis.call('ZREM', KEYS[5], '*' .. old[3] .. ARGV[2])
return 'o'
""")
"""KEYS fence record slugs records-of-kind records-of-project; ARGV token id project. `n`: there
is none, `m`: it has moved to another project since it was read."""

RECORDS: Final = script("""
local rows = {}
for i = 1, #KEYS do rows[i] = redis.call('HMGET', KEYS[i], 'p', 'v', 'n', 'g', 'c') end
return rows
""")
"""KEYS records; project, data, revision, slug, creation of each."""

# m = digest of the event key (32) .. arrival (14 hexadecimal digits) .. event id
_EVENTS = """
local FENCE, EV, WAITING, EXPIRY, CLAIMS = unpack(KEYS)
local function forget(m)
  redis.call('HDEL', EV, 'e' .. m, 'i' .. string.sub(m, 1, 32) .. string.sub(m, 47))
  redis.call('ZREM', WAITING, m)
  redis.call('ZREM', EXPIRY, m)
end
local function sweep(now)
  for _, m in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', now, 'LIMIT', 0, 2000)) do
    forget(m)
  end
  for _, c in ipairs(redis.call('ZRANGEBYSCORE', CLAIMS, '-inf', now, 'LIMIT', 0, 2000)) do
    redis.call('HDEL', EV, c)
    redis.call('ZREM', CLAIMS, c)
  end
end
"""

BUFFER_EVENT: Final = script(
    CLOCK,
    ANSWERS,
    _EVENTS,
    """
if (redis.call('GET', FENCE) or '0') ~= ARGV[1] then return 'f' end
local bound, digest, id, data, ttl = tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local now = now_ms()
sweep(now)
if redis.call('HEXISTS', EV, 'i' .. digest .. id) == 1 then return 'o' end
if redis.call('ZCARD', WAITING) >= bound then return 'l' end
local t = redis.call('TIME')
local arrival = t[1] * 1000000 + t[2]
local newest = redis.call('ZRANGE', WAITING, '(' .. digest .. 'g', '[' .. digest, 'BYLEX', 'REV',
  'LIMIT', 0, 1)[1]
if newest then arrival = math.max(arrival, tonumber(string.sub(newest, 33, 46), 16) + 1) end
local m = digest .. string.format('%014x', arrival) .. id
redis.call('HSET', EV, 'e' .. m, data, 'i' .. digest .. id, m)
redis.call('ZADD', WAITING, 0, m)
redis.call('ZADD', EXPIRY, now + ttl, m)
outlive(EV, ttl)
outlive(WAITING, ttl)
outlive(EXPIRY, ttl)
return 'o'
""",
)
"""KEYS fence ev evq evx evc; ARGV token bound digest event-id data ttl-ms."""

TAKE_EVENT: Final = script(
    CLOCK,
    ANSWERS,
    _EVENTS,
    """
if (redis.call('GET', FENCE) or '0') ~= ARGV[1] then return {'f'} end
local bound, digest, now = tonumber(ARGV[2]), ARGV[3], now_ms()
sweep(now)
local claim = 'c' .. digest .. ARGV[4]
local m = redis.call('HGET', EV, claim)
if m then
  if tonumber(redis.call('ZSCORE', EXPIRY, m) or 0) > now then
    return {'o', redis.call('HGET', EV, 'e' .. m)}
  end
end
while true do
  m = redis.call('ZRANGE', WAITING, '[' .. digest, '(' .. digest .. 'g', 'BYLEX', 'LIMIT', 0, 1)[1]
  if not m then return {'n'} end
  local ends = tonumber(redis.call('ZSCORE', EXPIRY, m) or 0)
  if ends > now then
    redis.call('ZREM', WAITING, m)
    redis.call('HSET', EV, claim, m)
    redis.call('ZADD', CLAIMS, ends, claim)
    outlive(CLAIMS, ends - now)
    if redis.call('ZCARD', CLAIMS) > bound then
      local oldest = redis.call('ZPOPMIN', CLAIMS)[1]
      local gone = redis.call('HGET', EV, oldest)
      redis.call('HDEL', EV, oldest)
      if gone then forget(gone) end
    end
    return {'o', redis.call('HGET', EV, 'e' .. m)}
  end
  forget(m)
end
""",
)
"""KEYS fence ev evq evx evc; ARGV token bound digest taker. {`o`, data}, {`n`}: there is none."""
