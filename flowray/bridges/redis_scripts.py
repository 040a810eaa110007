"""What Redis does for a bridge in one step: scripts run there as a whole or not at all.

A window is a sorted set of message ids, numbered in the order in which they came. Keys of one script share the slot
`{name of the stream}`.
"""

from __future__ import annotations

# Both windows are cut to the last ARGV[2] ids. The newest number is asked for once, then counted on.
_NEWEST = """
local function newest(key)
    local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
    return last[2] and tonumber(last[2]) or 0
end
"""

SETTLE = (
    _NEWEST
    + """
-- KEYS: stream, window. ARGV: group, ids to keep, number of ids, the ids ..., the entries to acknowledge ...
local ids = tonumber(ARGV[3])
if ids > 0 then
    local number = newest(KEYS[2])
    for i = 4, 3 + ids do
        number = number + 1
        redis.call('ZADD', KEYS[2], string.format('%.0f', number), ARGV[i])
    end
    redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[2]))
end
for i = 4 + ids, #ARGV do
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
end
"""
)
"""Remember what flowray took over and acknowledge the entries: there is no moment between the two."""

BURY = """
-- KEYS: stream, dead letters. ARGV: group, entry, dead letters to keep, reason, bridge.
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if found[1] then
    local fields = {'reason', ARGV[4], 'source', KEYS[1], 'entry', ARGV[2], 'flowray-origin', ARGV[5]}
    for position, part in ipairs(found[1][2]) do
        if position > 1000 then break end
        fields[#fields + 1] = part
    end
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(fields))
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
"""
"""Copy an entry (its first 500 fields) to the dead letters and acknowledge it; a large body never travels."""

SEND = (
    _NEWEST
    + """
-- KEYS: stream, window. ARGV: bridge, ids to keep, entries to keep, then for each message: id, topic, publisher, body.
local number = newest(KEYS[2])
local known = 0
for i = 4, #ARGV, 4 do
    if redis.call('ZSCORE', KEYS[2], ARGV[i]) then
        known = known + 1
    else
        local entry = {'*', 'message_id', ARGV[i], 'flowray-origin', ARGV[1], 'topic', ARGV[i + 1],
                       'publisher', ARGV[i + 2], 'body', ARGV[i + 3]}
        if ARGV[3] ~= '0' then
            redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], unpack(entry))
        else
            redis.call('XADD', KEYS[1], unpack(entry))
        end
        number = number + 1
        redis.call('ZADD', KEYS[2], string.format('%.0f', number), ARGV[i])
    end
end
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[2]))
return known
"""
)
"""Add messages to a stream, each once, however often this is called with it. Returns how many were there already."""
