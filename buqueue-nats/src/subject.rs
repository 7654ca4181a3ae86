//! Subjects: which patterns cover which, and where messages without a subject of their own go. No I/O.

/// Whether the text may be published to: non-empty tokens of printable characters, no wildcards.
pub(crate) fn is_literal(text: &str) -> bool {
    text.len() <= 1024 && text.split('.').all(|token| is_token(token) && token != "*" && token != ">")
}

/// Whether the text may be subscribed to.
pub(crate) fn is_pattern(text: &str) -> bool {
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        if !is_token(token) || (token == ">" && tokens.peek().is_some()) {
            return false;
        }
    }
    text.len() <= 1024
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// Whether the pattern covers the subject.
pub(crate) fn covers(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    for token in pattern.split('.') {
        match (token, subject.next()) {
            (">", rest) => return rest.is_some(),
            ("*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

/// Whether there is a subject that both patterns cover.
pub(crate) fn overlaps(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

/// The subject of messages that have none of their own: the pattern with its wildcards replaced.
pub(crate) fn default_of(pattern: &str) -> String {
    let tokens: Vec<&str> =
        pattern.split('.').map(|token| if matches!(token, "*" | ">") { "_" } else { token }).collect();
    tokens.join(".")
}

/// Where the schedules of a stream lie, in the stream itself.
pub(crate) fn schedules(stream: &str) -> String {
    format!("_buqueue.schedule.{stream}.>")
}

/// Where delayed messages of a stream lie, in a stream of their own.
pub(crate) fn delayed(stream: &str) -> String {
    format!("_buqueue.delay.{stream}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_subjects() {
        for (pattern, subject, yes) in [
            ("orders.>", "orders.placed", true),
            ("orders.>", "orders.placed.eu", true),
            ("orders.>", "orders", false),
            ("orders.*", "orders.placed", true),
            ("orders.*", "orders.placed.eu", false),
            ("orders.*.eu", "orders.placed.eu", true),
            ("orders", "orders", true),
            ("orders", "order", false),
            (">", "anything.at.all", true),
        ] {
            assert_eq!(covers(pattern, subject), yes, "{pattern} {subject}");
        }
    }

    #[test]
    fn patterns_overlap() {
        for (one, other, yes) in [
            ("orders.>", "orders.placed", true),
            ("orders.*", "*.placed", true),
            ("orders.*", "orders.a.b", false),
            (">", "_buqueue.schedule.x.>", true),
            ("*.schedule.>", "_buqueue.schedule.x.>", true),
            ("orders.>", "_buqueue.schedule.x.>", false),
            ("orders", "orders.>", false),
        ] {
            assert_eq!(overlaps(one, other), yes, "{one} {other}");
            assert_eq!(overlaps(other, one), yes, "{other} {one}");
        }
    }

    #[test]
    fn the_default_subject_is_covered_by_its_pattern() {
        for (pattern, subject) in [
            ("orders.>", "orders._"),
            ("orders.*.eu", "orders._.eu"),
            ("orders", "orders"),
            ("a.*.>", "a._._"),
        ] {
            assert_eq!(default_of(pattern), subject);
            assert!(covers(pattern, subject) && is_literal(subject), "{pattern}");
        }
    }

    #[test]
    fn texts_that_are_no_subject() {
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a\nb", "a\u{a0}b", "a.*", "a.>", &"a".repeat(1025)]
        {
            assert!(!is_literal(text), "{text:?}");
        }
        assert!(is_literal("größe.ü"));
        assert!(is_pattern("a.*.>") && !is_pattern("a.>.b") && !is_pattern("a b"));
    }
}
