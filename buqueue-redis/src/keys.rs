//! The names of the keys beside the stream.

/// Every key that belongs to a stream. All share the stream's hash slot, so that one script may touch them.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// The user's stream.
    pub(crate) stream: String,
    /// What this group has to see again: a stream.
    pub(crate) retry: String,
    /// What this group has to see again later: a sorted set, by time.
    pub(crate) delayed: String,
    /// Leases of this group that were extended beyond the pending timeout: a sorted set, by time.
    pub(crate) holds: String,
    /// What is to be added to the stream later: a sorted set, by time.
    pub(crate) schedule: String,
    /// Members of the sorted sets that cannot be read: a list, for a human to look at.
    pub(crate) broken: String,
    /// The start of the keys that remember deduplication ids.
    dedup: String,
}

impl Keys {
    pub(crate) fn new(stream: &str, group: &str) -> Self {
        let base = base(stream);
        Self {
            stream: stream.to_owned(),
            retry: format!("{base}:retry:{group}"),
            delayed: format!("{base}:delayed:{group}"),
            holds: format!("{base}:holds:{group}"),
            schedule: format!("{base}:schedule"),
            broken: format!("{base}:broken"),
            dedup: format!("{base}:dedup:"),
        }
    }

    pub(crate) fn dedup(&self, id: &str) -> String {
        format!("{}{id}", self.dedup)
    }
}

/// What the other keys start with.
pub(crate) fn base(stream: &str) -> String {
    // `orders` and `{orders}` are two streams, and share none of these.
    if hash_tag(stream).len() < stream.len() { format!("{stream}:bq") } else { format!("{{{stream}}}") }
}

/// The part of a key that decides its slot in a cluster.
pub(crate) fn hash_tag(key: &str) -> &str {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_share_the_slot_of_the_stream() {
        for stream in ["orders", "app:orders", "{app}:orders", "app:{x}:y"] {
            let keys = Keys::new(stream, "g{x}");
            let dedup = keys.dedup("id{y}");
            for key in
                [&keys.retry, &keys.delayed, &keys.holds, &keys.schedule, &keys.broken, &dedup, &keys.stream]
            {
                assert_eq!(hash_tag(key), hash_tag(stream), "{key}");
            }
        }
    }

    #[test]
    fn streams_that_differ_by_braces_share_no_key() {
        let (plain, tagged) = (Keys::new("orders", "g"), Keys::new("{orders}", "g"));
        assert_ne!(plain.retry, tagged.retry);
        assert_ne!(plain.schedule, tagged.schedule);
        assert_ne!(plain.dedup("x"), tagged.dedup("x"));
    }
}
