"""The Lua texts that run in the server, for Redis 6.2 and later and for Valkey.

Rules all of them keep: every key comes in KEYS; whoever writes compares the fencing token first;
everything that can refuse is tested before the first write, because a script that fails half way
is not undone; only absolute values are written. Answers are one letter (see `VERDICTS` of
`redis_runs`): `o` done, `f` fenced, `s` stale, `e` exists, `l` bound reached, ...
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple


class Script(NamedTuple):
    """A text and the name the server knows it by."""

    text: str
    sha: str


def _script(*parts: str) -> Script:
    text = "\n".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# Lua's C stack takes some thousands of values in one call.
_MANY = """
local function in_parts(command, key, a, b)
  for x = a, b, 1000 do
    redis.call(command, key, unpack(ARGV, x, math.min(x + 999, b)))
  end
end
"""

_CLOCK = """
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""

# Remembered answers: a string with TTL each, and their digests by expiry to count them.
_ANSWERS = """
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

ACQUIRE: Final = _script(
    _CLOCK,
    """
local held = redis.call('GET', KEYS[1])
if held then
  local left = redis.call('PTTL', KEYS[1])
  return {0, held, left, tostring(now_ms() + left)}
end
local fence = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], fence .. ' ' .. ARGV[1], 'PX', ARGV[2])
return {fence, '', 0, ''}
""",
)
"""KEYS lease fence; ARGV owner lease-ms. {token or 0, lease, ms left, server ms of its end}"""

RENEW: Final = _script("""
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'f' end
local mine = ARGV[1] .. ' ' .. ARGV[2]
local held = redis.call('GET', KEYS[1])
if held and held ~= mine then return 'f' end
redis.call('SET', KEYS[1], mine, 'PX', ARGV[3])
return 'o'
""")
"""KEYS lease fence; ARGV token owner lease-ms. A lease that ran out and nobody took is ours."""

RELEASE: Final = _script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'o'
""")
"""KEYS lease; ARGV lease text."""

COMMIT: Final = _script(
    _MANY,
    _CLOCK,
    _ANSWERS,
    """
local FORMAT = '<I4I4I4I4I4I4I4I4I4I4I4I4BBBBB'
local ACTIVE = {p = true, r = true, h = true}
local ACTIVE_SET, EXPIRE_SET = KEYS[2], KEYS[3]
local BOUND = tonumber(ARGV[3])
local count = tonumber(ARGV[2])
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return string.rep('f', count) end

local now
local rooms = {}

local function check(o)
  local krun, _, _, _, nargs, nfields, nadd, ndone, nhist, njobs, _, _,
    finished, blob, head, _, idem = struct.unpack(FORMAT, ARGV[o])
  local q = redis.pcall('HGET', KEYS[krun], 'q')
  local packed = type(q) == 'table'
  if packed then q = redis.call('GETRANGE', KEYS[krun], 0, 63) end
  local follows = ARGV[o + 1]
  local old
  if q then
    local at, letter = string.match(q, '^(%d+ %d+) (%a)')
    if at == string.sub(ARGV[o + 2], 1, -3) then return 'o', nil, nargs end
    if follows == '0' then return 'e', nil, nargs end
    if string.match(at, '^%d+') ~= follows then return 's', nil, nargs end
    if finished == 1 and blob == 0 and not packed then return 's', nil, nargs end
    if finished == 0 and head == 0 and packed then return 's', nil, nargs end
    old = letter
  else
    if follows ~= '0' or head == 0 then return 's', nil, nargs end
    if finished == 1 and blob == 0 then return 's', nil, nargs end
  end
  local k = krun
  if finished == 1 or nadd + ndone > 0 then k = k + 1 end
  if nhist > 0 then
    k = k + 1
    local first = o + 5 + nfields + nadd + ndone
    if redis.call('LLEN', KEYS[k]) < tonumber(ARGV[first]) - 1 then return 's', nil, nargs end
  end
  if njobs > 0 then k = k + 1 end
  if idem == 1 then
    now = now or now_ms()
    local zset, member = KEYS[k + 2], ARGV[o + nargs - 2]
    local left = rooms[zset] or BOUND
    left = math.min(left, room(zset, member, BOUND, now))
    if left <= 0 then return 'l', nil, nargs end
    rooms[zset] = left - 1
  end
  return nil, old, nargs, packed
end

local function move(ix, ixw, busy, old, letter, key)
  if old == letter then return end
  if old then
    redis.call('ZREM', ix, old .. key)
    redis.call('ZREM', ixw, old .. key)
    redis.call('ZADD', ix, 0, letter .. key)
    redis.call('ZADD', ixw, 0, letter .. key)
  else
    redis.call('ZADD', ix, 0, '*' .. key, 0, letter .. key)
    redis.call('ZADD', ixw, 0, '*' .. key, 0, letter .. key)
  end
  local was, is = old and ACTIVE[old], ACTIVE[letter]
  if is and not was then
    redis.call('SADD', busy, string.sub(key, 13))
  elseif was and not is then
    redis.call('SREM', busy, string.sub(key, 13))
  end
end

local function keep_jobs(jobs, a, njobs, ntrim)
  in_parts('HSET', jobs, a, a + njobs - 1)
  for x = a + njobs, a + njobs + 2 * ntrim - 1, 2 do
    local pointer, lowest = 'm' .. ARGV[x], tonumber(ARGV[x + 1]) - 99
    local from = tonumber(redis.call('HGET', jobs, pointer) or 1)
    if lowest > from then
      for attempt = from, lowest - 1 do redis.call('HDEL', jobs, ARGV[x] .. ':' .. attempt) end
      redis.call('HSET', jobs, pointer, lowest)
    end
  end
end

local function keep_history(hist, a, nhist)
  local skip = redis.call('LLEN', hist) - (tonumber(ARGV[a]) - 1)
  if skip < nhist then in_parts('RPUSH', hist, a + 1 + skip, a + nhist) end
end

local function pack(key, blob, q, a)
  if blob == 1 then
    redis.call('SET', key, ARGV[a])
    return
  end
  local stored, vitals = redis.call('GET', key), ARGV[a]
  local _, line_end, length = string.find(stored, '^%d+ %d+ %a (%d+)\\n')
  local rest = string.sub(stored, line_end + 1 + tonumber(length))
  redis.call('SET', key, q .. ' ' .. #vitals .. '\\n' .. vitals .. rest)
end

local function apply(o, old, packed)
  local krun, kix, kixw, kbusy, nargs, nfields, nadd, ndone, nhist, njobs, ntrim, ntags,
    finished, blob, _, keep, idem = struct.unpack(FORMAT, ARGV[o])
  local run, q, key, due = KEYS[krun], ARGV[o + 2], ARGV[o + 3], ARGV[o + 4]
  local k, a = krun, o + 5
  if finished == 1 then
    pack(run, blob, q, a)
  else
    if packed then redis.call('DEL', run) end
    redis.call('HSET', run, 'q', q, unpack(ARGV, a, a + math.min(nfields, 1000) - 1))
    in_parts('HSET', run, a + 1000, a + nfields - 1)
  end
  a = a + nfields
  move(KEYS[kix], KEYS[kixw], KEYS[kbusy], old, string.sub(q, -1), key)
  local waits = finished == 0
  if finished == 1 or nadd + ndone > 0 then
    k = k + 1
    in_parts('HDEL', KEYS[k], a + nadd, a + nadd + ndone - 1)
    in_parts('HSET', KEYS[k], a, a + nadd - 1)
    a = a + nadd + ndone
    waits = waits or redis.call('EXISTS', KEYS[k]) == 1
  end
  if waits then
    redis.call('ZADD', ACTIVE_SET, due, key)
  else
    redis.call('ZREM', ACTIVE_SET, key)
  end
  if nhist > 0 then
    k = k + 1
    keep_history(KEYS[k], a, nhist)
    a = a + 1 + nhist
  end
  if njobs > 0 then
    k = k + 1
    keep_jobs(KEYS[k], a, njobs, ntrim)
  end
  if idem == 1 then
    remember(KEYS[k + 1], KEYS[k + 2], ARGV[o + nargs - 2], ARGV[o + nargs - 3],
      tonumber(ARGV[o + nargs - 1]), now)
    k = k + 2
  end
  if not old then
    for x = k + 1, k + ntags do redis.call('ZADD', KEYS[x], 0, '*' .. key) end
  end
  if keep == 1 then
    redis.call('ZADD', EXPIRE_SET, ARGV[o + nargs - 1 - 3 * idem], key)
  elseif packed then
    redis.call('ZREM', EXPIRE_SET, key)
  end
end

local words, olds, packs, starts = {}, {}, {}, {}
local o = 4
for i = 1, count do
  local word, old, nargs, packed = check(o)
  words[i], olds[i], packs[i], starts[i] = word or false, old, packed, o
  o = o + nargs
end
for i = 1, count do
  if not words[i] then
    apply(starts[i], olds[i], packs[i])
    words[i] = 'o'
  end
end
return table.concat(words)
""",
)
"""KEYS fence active expire, then those of the runs; ARGV token count bound, then the runs.
One letter a run. `redis_runs` builds the arguments and says what they are."""

LOAD: Final = _script("""
local found = {}
for i = 1, #KEYS, 2 do
  local fields = redis.pcall('HGETALL', KEYS[i])
  local run
  if fields.err then run = redis.call('GET', KEYS[i]) elseif #fields > 0 then run = fields end
  found[#found + 1] = run or false
  found[#found + 1] = run and redis.call('HGETALL', KEYS[i + 1]) or false
end
return found
""")
"""KEYS run outbox of each; HASH or STRING, and the outbox, of each."""

ROWS: Final = _script("""
local budget, prefix = tonumber(ARGV[1]), tonumber(ARGV[2])
local rows = {}
for i = 1, #KEYS do
  if budget <= 0 then break end
  local row = redis.pcall('HMGET', KEYS[i], 'r', 'h')
  if row.err then
    row = redis.call('GETRANGE', KEYS[i], 0, prefix - 1)
    budget = budget - #row
  elseif row[1] then
    budget = budget - #row[1] - #row[2]
  else
    row = false
  end
  rows[i] = row
end
return rows
""")
"""KEYS runs; ARGV byte budget, how much of a finished run. {head, vitals} or the first bytes."""

PAGE: Final = _script("""
local limit, budget, lower, upper = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local function bounds(letter)
  local high = upper ~= '' and letter .. upper or string.char(string.byte(letter) + 1)
  return '(' .. high, '[' .. letter .. lower
end
local source, fewest = 1, nil
if #KEYS > 1 then
  for i = 1, #KEYS do
    local high, low = bounds(ARGV[4 + i])
    local n = redis.call('ZLEXCOUNT', KEYS[i], low, high)
    if not fewest or n < fewest then source, fewest = i, n end
  end
end
local function in_others(key)
  for i = 1, #KEYS do
    if i ~= source and not redis.call('ZSCORE', KEYS[i], ARGV[4 + i] .. key) then return false end
  end
  return true
end
local high, low = bounds(ARGV[4 + source])
local step = #KEYS > 1 and 200 or limit + 1
local page, read, last = {}, 0, ''
while true do
  local got = redis.call('ZRANGE', KEYS[source], high, low, 'BYLEX', 'REV', 'LIMIT', 0, step)
  for j = 1, #got do
    if #page == limit or read == budget then return {last, page} end
    local key = string.sub(got[j], 2)
    read, last = read + 1, key
    if in_others(key) then page[#page + 1] = key end
  end
  if #got < step then return {'', page} end
  high = '(' .. got[#got]
end
""")
"""KEYS indexes that all must have the run; ARGV limit, entries to read at most, lower and upper
bound, a letter an index. {sort key to go on after or '', sort keys}. Reads the smallest index."""

DELETE_RUNS: Final = _script("""
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return -1 end
local k, a, deleted = 4, 2, 0
while a <= #ARGV do
  local ntags, seq, key = tonumber(ARGV[a]), ARGV[a + 1], ARGV[a + 2]
  local run, out, hist, jobs, ix, ixw = unpack(KEYS, k, k + 5)
  local line = redis.pcall('GETRANGE', run, 0, 63)
  local letter = type(line) == 'string' and string.sub(line, 1, #seq) == seq
    and string.match(line, '^%d+ %d+ (%a)')
  if letter and redis.call('EXISTS', out) == 0 and redis.call('ZSCORE', KEYS[3], key) then
    redis.call('UNLINK', run, hist, jobs)
    redis.call('ZREM', ix, '*' .. key, letter .. key)
    redis.call('ZREM', ixw, '*' .. key, letter .. key)
    for x = k + 6, k + 5 + ntags do redis.call('ZREM', KEYS[x], '*' .. key) end
    redis.call('ZREM', KEYS[3], key)
    redis.call('ZREM', KEYS[2], key)
    deleted = deleted + 1
  end
  k, a = k + 6 + ntags, a + 3
end
return deleted
""")
"""KEYS fence active expire, of each run: run outbox history jobs index workflow-index tags...;
ARGV token, of each run: number of tags, stored sequence and a blank, sort key."""

REMEMBER: Final = _script(
    _CLOCK,
    _ANSWERS,
    """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 'f' end
local now = now_ms()
if room(KEYS[3], ARGV[4], tonumber(ARGV[2]), now) <= 0 then return 'l' end
remember(KEYS[2], KEYS[3], ARGV[4], ARGV[3], tonumber(ARGV[5]), now)
return 'o'
""",
)
"""KEYS fence answer answers; ARGV token bound data digest ttl-ms."""

PUT_RECORD: Final = _script(
    _CLOCK,
    _ANSWERS,
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
if KEYS[6] then
  local now = now_ms()
  if room(KEYS[7], ARGV[11], tonumber(ARGV[9]), now) <= 0 then return 'l' end
  remember(KEYS[6], KEYS[7], ARGV[11], ARGV[10], tonumber(ARGV[12]), now)
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
"""KEYS fence record slugs records-of-kind records-of-project [answer answers]; ARGV token id
project data revision created(12 hexadecimal digits) has-slug slug [bound data digest ttl-ms]."""

DELETE_RECORD: Final = _script("""
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

RECORDS: Final = _script("""
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

BUFFER_EVENT: Final = _script(
    _CLOCK,
    _ANSWERS,
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

TAKE_EVENT: Final = _script(
    _CLOCK,
    _ANSWERS,
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
