//! The Lua scripts. Each is one atomic step at the server, by the server's clock.
//!
//! An entry of the retry stream is `i` (the id of the original), `a` (attempts before), `f` (time of the first
//! failure in ms, or 0), followed by the fields of the original as they were. A member of the delayed set is the
//! same list, packed; a member of the schedule is a unique string followed by the fields.

use std::sync::LazyLock;

use redis::{Cmd, Script};

/// A script: sent by its hash, and as text where the server does not know it.
pub(crate) struct Lua {
    text: &'static str,
    script: LazyLock<Script>,
}

impl Lua {
    pub(crate) fn by_hash(&self) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(self.script.get_hash());
        cmd
    }

    pub(crate) fn by_text(&self) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(self.text);
        cmd
    }
}

macro_rules! lua {
    ($(#[$doc:meta])* $name:ident = $($text:expr),+) => {
        $(#[$doc])*
        pub(crate) static $name: Lua = Lua {
            text: concat!($($text),+),
            script: LazyLock::new(|| Script::new(concat!($($text),+))),
        };
    };
}

/// `now()` in ms as a number, `ms(n)` as text: Lua would write a time as 1.7e+12.
macro_rules! clock {
    () => {
        "local function ms(n) return string.format('%.0f', n) end
local function now() local t = redis.call('TIME') return t[1] * 1000 + math.floor(t[2] / 1000) end
"
    };
}

/// `discard(key, shared, ids)` deletes entries that this group is done with, unless another group of a shared
/// stream still needs them; the trimmer deletes those later.
macro_rules! discard {
    () => {
        "local function discard(key, shared, ids)
  if shared and #redis.call('XINFO', 'GROUPS', key) > 1 then return end
  redis.call('XDEL', key, unpack(ids))
end
"
    };
}

/// `again(key, group, id, is_retry, count, failed, broken)` gives a pending entry as a list for the retry stream; nil
/// when there is nothing to retry. `count`: attempts that this delivery stands for. An entry with more fields than a
/// script can write is parked in the list `broken`; then the second value is true.
macro_rules! again {
    () => {
        "local function again(key, group, id, is_retry, count, failed, broken)
  local entry = redis.call('XRANGE', key, id, id)
  if #entry == 0 then
    redis.call('XACK', key, group, id)
    return nil, false
  end
  local list = entry[1][2]
  if is_retry and #list >= 6 then
    list[4] = ms((tonumber(list[4]) or 0) + count)
    if list[6] == '0' and count > 0 then list[6] = failed end
  else
    local fields = list
    list = {'i', id, 'a', ms(count), 'f', count > 0 and failed or '0'}
    for n = 1, #fields do list[n + 6] = fields[n] end
  end
  if #list <= 7900 then return list, false end
  redis.call('RPUSH', broken, cmsgpack.pack(list))
  redis.call('XACK', key, group, id)
  discard(key, not is_retry, {id})
  return nil, true
end
"
    };
}

lua! {
    /// Adds an entry unless its deduplication id is remembered; the id of the entry, or of the first one.
    /// KEYS stream, dedup. ARGV window in ms, fields.
    SEND_ONCE =
    "local first = redis.call('GET', KEYS[2])
if first then return first end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('SET', KEYS[2], id, 'PX', ARGV[1])
return id"
}

lua! {
    /// Adds an entry now or later. KEYS stream, schedule, dedup (optional).
    /// ARGV due in ms, unique id, window in ms, fields.
    SEND_AT = clock!(),
    "if KEYS[3] then
  local first = redis.call('GET', KEYS[3])
  if first then return first end
end
local id = ARGV[2]
if tonumber(ARGV[1]) <= now() then
  id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4))
else
  redis.call('ZADD', KEYS[2], ARGV[1], cmsgpack.pack({ARGV[2], unpack(ARGV, 4)}))
end
if KEYS[3] then redis.call('SET', KEYS[3], id, 'PX', ARGV[3]) end
return id"
}

lua! {
    /// Acks entries and deletes them. KEYS stream, holds. ARGV group, shared (1: other groups may need them), holds
    /// may have them (0, 1), ids. How many there are when all were pending, else 0 or 1 an id.
    ACK = discard!(),
    "local outcome, mine = {}, {}
local tag = ARGV[2] == '1' and 'm' or 'r'
for n = 4, #ARGV do
  local id = ARGV[n]
  local acked = redis.call('XACK', KEYS[1], ARGV[1], id)
  outcome[n - 3] = acked
  if acked == 1 then
    mine[#mine + 1] = id
    if ARGV[3] == '1' then redis.call('ZREM', KEYS[2], tag .. id) end
  end
end
if #mine > 0 then discard(KEYS[1], ARGV[2] == '1', mine) end
if #mine == #outcome then return #mine end
return outcome"
}

lua! {
    /// Puts pending entries back: 0 or 1 an id. KEYS source, retry, delayed, holds, broken.
    /// ARGV group, source is the retry stream (0, 1), counts as an attempt (0, 1), delay in ms, ids.
    AGAIN = clock!(), discard!(), again!(),
    "local outcome = {}
local is_retry = ARGV[2] == '1'
local delay = tonumber(ARGV[4])
for n = 5, #ARGV do
  local id = ARGV[n]
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)
  outcome[n - 4] = 0
  if #pending == 1 then
    local count = pending[1][4]
    if ARGV[3] == '0' then count = count - 1 end
    local list, parked = again(KEYS[1], ARGV[1], id, is_retry, count, ms(now()), KEYS[5])
    if parked then
      outcome[n - 4] = 1
    elseif list then
      if delay > 0 then
        redis.call('ZADD', KEYS[3], ms(now() + delay), cmsgpack.pack(list))
      else
        redis.call('XADD', KEYS[2], '*', unpack(list))
      end
      redis.call('XACK', KEYS[1], ARGV[1], id)
      redis.call('ZREM', KEYS[4], (is_retry and 'r' or 'm') .. id)
      discard(KEYS[1], not is_retry, {id})
      outcome[n - 4] = 1
    end
  end
end
return outcome"
}

lua! {
    /// Lets a lease end `by` from now; 0 when it is lost. KEYS source, holds.
    /// ARGV group, id, by in ms, pending timeout in ms, tag.
    EXTEND = clock!(),
    "local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if #pending == 0 then return 0 end
local by, timeout = tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('XCLAIM', KEYS[1], ARGV[1], pending[1][2], 0, ARGV[2], 'IDLE', ms(math.max(0, timeout - by)), 'JUSTID')
if by > timeout then
  redis.call('ZADD', KEYS[2], ms(now() + by), ARGV[5] .. ARGV[2])
else
  redis.call('ZREM', KEYS[2], ARGV[5] .. ARGV[2])
end
return 1"
}

lua! {
    /// Moves what is due, and what was not settled in time.
    /// KEYS stream, retry, schedule, delayed, holds, broken.
    /// ARGV group, pending timeout in ms, cursor of the stream, cursor of the retry stream. A cursor is the last id
    /// looked at, or 0-0.
    /// Gives: ms until the next is due or -1; 1 when there is more to move at once; the cursors; 1 when a group
    /// is gone; how many were due, and how many were taken back.
    MAINTAIN = clock!(), discard!(), again!(),
    "local at = now()
local more, moved, bytes = 0, 0, 0
local function whole(list)
  if type(list) ~= 'table' or #list < 2 or #list % 2 ~= 0 then return false end
  for n = 1, #list do if type(list[n]) ~= 'string' then return false end end
  return #list <= 7900
end
local function move(set, stream, has_id)
  while moved < 200 and bytes < 8000000 do
    local due = redis.call('ZRANGEBYSCORE', set, '-inf', ms(at), 'LIMIT', 0, 1)
    if #due == 0 then return end
    local ok, list = pcall(cmsgpack.unpack, due[1])
    if ok and has_id and type(list) == 'table' then table.remove(list, 1) end
    if ok and whole(list) then
      redis.call('XADD', stream, '*', unpack(list))
    else
      redis.call('RPUSH', KEYS[6], due[1])
    end
    redis.call('ZREM', set, due[1])
    moved, bytes = moved + 1, bytes + #due[1]
  end
  more = 1
end
move(KEYS[3], KEYS[1], true)
move(KEYS[4], KEYS[2], false)
local function left(set)
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  return first[2] and math.max(0, tonumber(first[2]) - at) or -1
end
local next, delayed = left(KEYS[3]), left(KEYS[4])
if next < 0 or (delayed >= 0 and delayed < next) then next = delayed end

local gone, reclaimed = 0, 0
local timeout = tonumber(ARGV[2])
local function reclaim(key, is_retry, cursor)
  local from = cursor == '0-0' and '-' or '(' .. cursor
  local stale = redis.pcall('XPENDING', key, ARGV[1], 'IDLE', ARGV[2], from, '+', 100)
  if stale.err then
    if string.find(stale.err, 'NOGROUP') then gone = 1 return '0-0' end
    error(stale)
  end
  local taken = 0
  for n, entry in ipairs(stale) do
    local id = entry[1]
    local hold = tonumber(redis.call('ZSCORE', KEYS[5], (is_retry and 'r' or 'm') .. id) or '0')
    if hold > at then
      local idle = ms(math.max(0, timeout - (hold - at)))
      redis.call('XCLAIM', key, ARGV[1], entry[2], 0, id, 'IDLE', idle, 'JUSTID')
    else
      local list, parked = again(key, ARGV[1], id, is_retry, entry[4], ms(at), KEYS[6])
      if list or parked then reclaimed = reclaimed + 1 end
      if list then
        redis.call('XADD', KEYS[2], '*', unpack(list))
        redis.call('XACK', key, ARGV[1], id)
        discard(key, not is_retry, {id})
        for n = 1, #list do bytes = bytes + #list[n] end
      end
      taken = taken + 1
    end
    if n == 100 or (n < #stale and bytes >= 8000000) then
      if taken > 0 then more = 1 end
      return id
    end
  end
  return '0-0'
end
local first = reclaim(KEYS[1], false, ARGV[3])
local second = reclaim(KEYS[2], true, ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', ms(at))
return {ms(next), more, first, second, gone, moved, reclaimed}"
}

lua! {
    /// Deletes what every group is done with. KEYS stream.
    TRIM =
    "local function before(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if #a1 ~= #b1 then return #a1 < #b1 end
  if a1 ~= b1 then return a1 < b1 end
  if #a2 ~= #b2 then return #a2 < #b2 end
  return a2 < b2
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local least
local deleted = 0
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local name, last
  for n = 1, #group, 2 do
    if group[n] == 'name' then name = group[n + 1] end
    if group[n] == 'last-delivered-id' then last = group[n + 1] end
  end
  local pending = redis.call('XPENDING', KEYS[1], name)
  -- A group that was set back has yet to read what lies before its oldest pending entry.
  local from = last
  if pending[1] > 0 and before(pending[2], from) then from = pending[2] end
  if not least or before(from, least) then least = from end
end
if least then deleted = redis.call('XTRIM', KEYS[1], 'MINID', '=', least) end
return deleted"
}

lua! {
    /// Removes a consumer that has nothing pending. KEYS stream, retry. ARGV group, consumer.
    LEAVE =
    "for _, key in ipairs(KEYS) do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', key, ARGV[1])
  if not consumers.err then
    for _, consumer in ipairs(consumers) do
      local name, pending
      for n = 1, #consumer, 2 do
        if consumer[n] == 'name' then name = consumer[n + 1] end
        if consumer[n] == 'pending' then pending = consumer[n + 1] end
      end
      if name == ARGV[2] and pending == 0 then redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], name) end
    end
  end
end
return 1"
}

lua! {
    /// Counts what lies before a group; writes nothing. KEYS stream, retry, schedule, delayed. ARGV group.
    /// Gives: ready, pending, not due.
    ///
    /// The server tells how far a group lags, but not before 7.0, and not while something is deleted behind the last
    /// entry that the group was given. Then what is in the stream and not pending lies before it, if this is the only
    /// group: its acks delete. With others, the entries are looked at, as far as that is no burden.
    STATS = clock!(),
    "local function count(key)
  local length = redis.call('XLEN', key)
  if redis.call('EXISTS', key) == 0 then return 0, 0 end
  local groups = redis.call('XINFO', 'GROUPS', key)
  local mine
  for _, group in ipairs(groups) do
    local fields = {}
    for n = 1, #group, 2 do fields[group[n]] = group[n + 1] end
    if fields['name'] == ARGV[1] then mine = fields end
  end
  -- It is created at the beginning.
  if not mine then return length, 0 end
  local pending = mine['pending']
  if mine['lag'] then return math.min(mine['lag'], length), pending end
  local seen, bytes, page, last = 0, 0, 1, mine['last-delivered-id']
  while seen < 1000 and bytes < 1000000 do
    local entries = redis.call('XRANGE', key, '(' .. last, '+', 'COUNT', page)
    seen = seen + #entries
    if #entries < page then return seen, pending end
    if #groups == 1 then break end
    for _, entry in ipairs(entries) do
      for _, text in ipairs(entry[2]) do bytes = bytes + #text end
    end
    last, page = entries[#entries][1], math.min(page * 2, 32)
  end
  return math.max(seen, length - pending), pending
end
local first, held = count(KEYS[1])
local second, held_again = count(KEYS[2])
local at = ms(now())
local function due(set) return redis.call('ZCOUNT', set, '-inf', at) end
local function later(set) return redis.call('ZCOUNT', set, '(' .. at, '+inf') end
return {first + second + due(KEYS[3]) + due(KEYS[4]), held + held_again, later(KEYS[3]) + later(KEYS[4])}"
}
