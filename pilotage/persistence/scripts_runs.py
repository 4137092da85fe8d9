"""The Lua texts for runs: group commit, loading, lists, removal. Rules: `scripts`."""

from __future__ import annotations

from typing import Final

from pilotage.persistence.scripts import ANSWERS, CLOCK, script

# Lua's C stack takes some thousands of values in one call.
_MANY = """
local function in_parts(command, key, a, b)
  for x = a, b, 1000 do
    redis.call(command, key, unpack(ARGV, x, math.min(x + 999, b)))
  end
end
"""

COMMIT: Final = script(
    _MANY,
    CLOCK,
    ANSWERS,
    """
local FORMAT = '<I4I4I4I4I4I4I4I4I4I4I4BBBBB'
local ACTIVE = {p = true, r = true, h = true}
local ACTIVE_SET, EXPIRE_SET = KEYS[2], KEYS[3]
local ANSWERS, JOB_RUNS = tonumber(ARGV[3]), tonumber(ARGV[4])
local count = tonumber(ARGV[2])
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return string.rep('f', count) end

local now
local rooms = {}

local function check(o)
  local krun, _, _, _, nargs, nfields, nadd, ndone, nhist, njobs, _,
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
    local left = rooms[zset] or ANSWERS
    left = math.min(left, room(zset, member, ANSWERS, now))
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

local function keep_jobs(jobs, a, njobs)
  for x = a, a + njobs - 1, 2 do
    local step, attempt = string.match(ARGV[x], '^(%d+):(%d+)$')
    local pointer, lowest = 'm' .. step, tonumber(attempt) - JOB_RUNS + 1
    local from = tonumber(redis.call('HGET', jobs, pointer) or 1)
    if tonumber(attempt) >= from then redis.call('HSET', jobs, ARGV[x], ARGV[x + 1]) end
    if lowest > from then
      for old = from, lowest - 1 do redis.call('HDEL', jobs, step .. ':' .. old) end
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
  local krun, kix, kixw, kbusy, nargs, nfields, nadd, ndone, nhist, njobs, ntags,
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
    keep_jobs(KEYS[k], a, njobs)
  end
  if idem == 1 then
    remember(KEYS[k + 1], KEYS[k + 2], ARGV[o + nargs - 2], ARGV[o + nargs - 3],
      tonumber(ARGV[o + nargs - 1]), now)
    k = k + 2
  end
  if not old then
    for x = k + 1, k + ntags do redis.call('ZADD', KEYS[x], 0, '*' .. key) end
  end
  if keep == 1 and finished == 1 then
    redis.call('ZADD', EXPIRE_SET, ARGV[o + nargs - 1 - 3 * idem], key)
  elseif packed then
    redis.call('ZREM', EXPIRE_SET, key)
  end
end

local words, olds, packs, starts = {}, {}, {}, {}
local o, ends = 5, true
for i = 1, count do
  local word, old, nargs, packed = check(o)
  words[i], olds[i], packs[i], starts[i] = word or false, old, packed, o
  ends = ends and (word or ACTIVE[old or ''] and not ACTIVE[string.sub(ARGV[o + 2], -1)])
  o = o + nargs
end
if ends then redis.call('ZREM', ACTIVE_SET, '') end
for i = 1, count do
  if not words[i] then
    apply(starts[i], olds[i], packs[i])
    words[i] = 'o'
  end
end
return table.concat(words)
""",
)
"""KEYS fence active expire, then those of the runs; ARGV token count, most answers of a
project, most job runs of a step, then the runs.
One letter a run. A batch that does nothing but end runs makes room, so it is taken while the memory
is full: a script is refused only at its first command that may need memory, before it has written;
so it begins with one that removes (nothing).
`redis_runs` builds the arguments and says what they are."""

LOAD: Final = script("""
local found = {}
for i = 1, #KEYS, 2 do
  local fields = redis.pcall('HGETALL', KEYS[i])
  local run
  if fields.err then run = redis.pcall('GET', KEYS[i]) elseif #fields > 0 then run = fields end
  if run and run.err then run = '' end
  local outbox = run and redis.pcall('HGETALL', KEYS[i + 1]) or false
  if outbox and outbox.err then run, outbox = '', {} end
  found[#found + 1] = run or false
  found[#found + 1] = outbox
end
return found
""")
"""KEYS run outbox of each; HASH or STRING, and the outbox, of each. '' is a run that is neither:
what is wrong with one must not keep the others from being read."""

ROWS: Final = script("""
local budget, prefix = tonumber(ARGV[1]), tonumber(ARGV[2])
local rows = {}
for i = 1, #KEYS do
  if budget <= 0 then break end
  local row = redis.pcall('HMGET', KEYS[i], 'r', 'h')
  if row.err then
    row = redis.pcall('GETRANGE', KEYS[i], 0, prefix - 1)
    if type(row) == 'table' then row = '' end
    budget = budget - #row
  elseif row[1] and row[2] then
    budget = budget - #row[1] - #row[2]
  elseif redis.call('EXISTS', KEYS[i]) == 1 then
    row = ''
  else
    row = false
  end
  rows[i] = row
end
return rows
""")
"""KEYS runs; ARGV byte budget, how much of a finished run. {head, vitals} or the first bytes; ''
is a run that is neither."""

PAGE: Final = script("""
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

DELETE_RUNS: Final = script("""
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

FORGET_RUNS: Final = script("""
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return -1 end
local zsets = tonumber(ARGV[2])
for i = 2, #KEYS do
  for a = 3, #ARGV do
    if i <= zsets + 1 then
      for letter in string.gmatch('*prhcftx', '.') do
        redis.call('ZREM', KEYS[i], letter .. ARGV[a])
      end
    else
      redis.call('SREM', KEYS[i], string.sub(ARGV[a], 13))
    end
  end
end
return 0
""")
"""KEYS fence indexes... sets of active runs...; ARGV token, number of indexes, sort keys. The
runs are in none of them any more."""

UNLINK_RUNS: Final = script("""
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return -1 end
local removed = 0
for a = 2, #ARGV do
  local k = 4 * a - 4
  local gone = redis.call('UNLINK', KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3])
  if ARGV[a] ~= '' then
    gone = gone + redis.call('ZREM', KEYS[2], ARGV[a]) + redis.call('ZREM', KEYS[3], ARGV[a])
  end
  if gone > 0 then removed = removed + 1 end
end
return removed
""")
"""KEYS fence active expire, of each run: run outbox history job-runs; ARGV token, the sort key of
each run or ''. How many there were, whatever state they are in."""

NAMES: Final = script("return redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])")
"""ARGV cursor pattern how-many. {next cursor, names of keys}; each name at least once."""

MEMBERS: Final = script(
    "return redis.call('ZSCAN', KEYS[1], ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])"
)
"""KEYS sorted set; ARGV cursor pattern how-many. {next cursor, member and score in turn}."""

PLACES: Final = script("""
local found = {}
local function listed(key)
  local all, one = '*' .. ARGV[1], ARGV[2] .. ARGV[1]
  return redis.call('ZSCORE', key, all) and redis.call('ZSCORE', key, one) and 1 or 0
end
found[1], found[2] = listed(KEYS[1]), listed(KEYS[2])
found[3] = redis.call('SISMEMBER', KEYS[3], ARGV[3])
for i = 4, 5 do found[i] = redis.call('ZSCORE', KEYS[i], ARGV[1]) and 1 or 0 end
for i = 6, #KEYS do found[i] = redis.call('ZSCORE', KEYS[i], '*' .. ARGV[1]) and 1 or 0 end
return found
""")
"""KEYS index workflow-index busy active expire tags...; ARGV sort key, status letter, run id. 1 for
each in which the run is as it should be."""

ORPHANS: Final = script("""
local found = {}
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 and redis.call('ZSCORE', KEYS[1], ARGV[i - 1]) then
    found[#found + 1] = ARGV[i - 1]
  end
end
return found
""")
"""KEYS index, run of each member; ARGV members. Those whose run is not there."""
