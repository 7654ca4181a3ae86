//! A configuration in one URL: what `from_url` of a backend's config struct is written with.
//!
//! ```
//! use std::time::Duration;
//!
//! use buqueue_core::url::UrlParts;
//!
//! # fn main() -> buqueue_core::Result<()> {
//! let (url, mut query) = UrlParts::parse("example://user:p%40ss@one:1,two:2/orders?lease=30s", &["example"])?;
//! assert_eq!(url.hosts(), "one:1,two:2");
//! assert_eq!(url.credentials()?, Some(("user".to_owned(), "p@ss".to_owned())));
//! assert_eq!(url.name("queue", "example://host/orders")?, "orders");
//!
//! let (mut lease, mut capacity) = (Duration::ZERO, 100_usize);
//! query.set("lease", &mut lease)?;
//! query.set("capacity", &mut capacity)?;
//! query.finish()?;
//! assert_eq!((lease, capacity), (Duration::from_secs(30), 100));
//! # Ok(()) }
//! ```
//!
//! Every error is [`InvalidConfig`](ErrorKind::InvalidConfig), begins with `url:` or the field's name, and shows no user
//! and no password. Percent-encoding is undone everywhere but in the part that a client reads itself; `+` is no
//! space, and `#` begins nothing: patterns of subjects and keys may be written as they are.

use std::fmt;
use std::time::Duration;

use crate::{BuqueueError, ErrorKind, Result, duration, percent};

/// A URL `scheme://user:password@hosts/path`, taken apart.
#[derive(Clone, Copy)]
pub struct UrlParts<'a> {
    scheme: &'a str,
    base: &'a str,
    user_info: Option<&'a str>,
    hosts: &'a str,
    path: &'a str,
}

impl<'a> UrlParts<'a> {
    /// Takes a URL apart that has one of these schemes; its query apart from the rest.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig): another scheme, a part of the query that is no `key=value`, a key that
    /// is there twice, a space, or an `@`, a `#` or a comma where a character of a password may have broken the URL.
    pub fn parse(url: &'a str, schemes: &[&str]) -> Result<(Self, UrlQuery<'a>)> {
        let known = |scheme: &&str| schemes.contains(scheme);
        let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| known(scheme)) else {
            return Err(invalid(format!("url: must begin with {}://", schemes.join(":// or "))));
        };
        if url.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
            // As at the end of a file: a name with it would be another queue.
            return Err(invalid("url: has a space, or the end of a line; a space in a value is %20"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // Else half a password would be taken for a host, a name or a key, and be shown as such.
        if query.contains('@') || path.contains('@') {
            return Err(invalid(
                "url: has an `@` behind the first `/` or `?`; a user or password has %2F and %3F for these, and all \
                 that follows has %40 for `@`",
            ));
        }
        let (user_info, hosts) = match authority.rsplit_once('@') {
            Some((user_info, hosts)) => (Some(user_info), hosts),
            None => (None, authority),
        };
        // Clients read a `#` as the end of the host, and a comma as the next host.
        if user_info.is_some_and(|user_info| user_info.contains(['#', ','])) {
            return Err(invalid(
                "url: the user or the password has a `#` (write %23) or a comma (%2C); of several hosts, the first has them \
                 before it, once",
            ));
        }
        let base = url.split_once('?').map_or(url, |(base, _)| base);
        Ok((Self { scheme, base, user_info, hosts, path }, UrlQuery::parse(query)?))
    }

    /// What stands before `://`.
    #[must_use]
    pub fn scheme(&self) -> &'a str {
        self.scheme
    }

    /// All before the `?`, as it was written, credentials included: for clients that read URLs themselves.
    #[must_use]
    pub fn base(&self) -> &'a str {
        self.base
    }

    /// The host or hosts with their ports, as they were written.
    #[must_use]
    pub fn hosts(&self) -> &'a str {
        self.hosts
    }

    /// What stands before the last `@`, as it was written.
    #[must_use]
    pub fn user_info(&self) -> Option<&'a str> {
        self.user_info
    }

    /// The user and the password, if they are there; an empty password where there is only a user.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) where percent-encoding is broken.
    pub fn credentials(&self) -> Result<Option<(String, String)>> {
        let Some(user_info) = self.user_info else { return Ok(None) };
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        match (percent::decode(user), percent::decode(password)) {
            (Some(user), Some(password)) => Ok(Some((user, password))),
            _ => Err(invalid("url: the credentials have a `%` that encodes nothing; write it as %25")),
        }
    }

    /// The path without its first slash, as it was written.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The path as the name that `field` takes.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) where it is missing, with the example, or its percent-encoding is broken.
    pub fn name(&self, field: &str, example: &str) -> Result<String> {
        name(self.path, field, example)
    }

    /// The host as the name that `field` takes, where nothing is connected to.
    ///
    /// # Errors
    /// As [`name`](Self::name).
    pub fn host_name(&self, field: &str, example: &str) -> Result<String> {
        name(self.hosts, field, example)
    }
}

/// Without user and password.
impl fmt::Debug for UrlParts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlParts")
            .field("scheme", &self.scheme)
            .field("hosts", &self.hosts)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// The pairs of a query. Each key that a backend knows is asked for once; what is left then is unknown.
pub struct UrlQuery<'a> {
    /// Values as they were written: a list is split before its items are decoded.
    pairs: Vec<(String, &'a str)>,
    known: Vec<&'static str>,
}

impl<'a> UrlQuery<'a> {
    fn parse(query: &'a str) -> Result<Self> {
        let mut pairs: Vec<(String, &str)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| invalid("url: the query must be of key=value pairs"))?;
            let key = percent::decode(key)
                .ok_or_else(|| invalid("url: a key of the query has broken percent-encoding"))?;
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(invalid(format!("url: the key {key:?} is there twice")));
            }
            pairs.push((key, value));
        }
        Ok(Self { pairs, known: Vec::new() })
    }

    /// Reads the value of this key into the field, if it is there.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig), beginning with the key, where it is none.
    pub fn set<T: UrlValue>(&mut self, key: &'static str, field: &mut T) -> Result<()> {
        if let Some(raw) = self.take(key) {
            *field = T::from_raw(raw).map_err(|fact| invalid(format!("{key}: {fact}")))?;
        }
        Ok(())
    }

    /// As [`set`](Self::set), for a key that must be there.
    ///
    /// # Errors
    /// As [`set`](Self::set); and where it is missing, with the example.
    pub fn require<T: UrlValue>(&mut self, key: &'static str, field: &mut T, example: &str) -> Result<()> {
        if !self.has(key) {
            return Err(missing(key, example));
        }
        self.set(key, field)
    }

    /// As [`set`](Self::set), for a field with a name for each of its values.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig), beginning with the key and listing the names, for any other.
    pub fn choose<T: Copy>(&mut self, key: &'static str, field: &mut T, choices: &[(&str, T)]) -> Result<()> {
        let mut text = String::new();
        if !self.has(key) {
            self.known.push(key);
            return Ok(());
        }
        self.set(key, &mut text)?;
        let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) else {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            return Err(invalid(format!("{key}: must be one of {}, is {text:?}", names.join(", "))));
        };
        *field = *choice;
        Ok(())
    }

    /// Whether this key is there and was not read yet.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(other, _)| other == key)
    }

    /// Takes these pairs out as they were written, for a client that reads them itself: `?key=value&…`, or nothing. A `+` is
    /// a plus here, and a blank to most of those clients, so it is encoded.
    pub fn keep(&mut self, keys: &[&'static str]) -> String {
        let mut kept = String::new();
        for key in keys {
            if let Some(raw) = self.take(key) {
                kept.push(if kept.is_empty() { '?' } else { '&' });
                kept.push_str(key);
                kept.push('=');
                kept.push_str(&raw.replace('+', "%2B"));
            }
        }
        kept
    }

    /// Refuses what nobody asked for.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig), with the keys that are known.
    pub fn finish(self) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => {
                let known = self.known.join(", ");
                Err(invalid(format!("url: unknown key {key:?}; known are {known}")))
            }
        }
    }

    fn take(&mut self, key: &'static str) -> Option<&'a str> {
        self.known.push(key);
        let at = self.pairs.iter().position(|(other, _)| other == key)?;
        Some(self.pairs.remove(at).1)
    }
}

/// Without the values, of which one may be a password.
impl fmt::Debug for UrlQuery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&str> = self.pairs.iter().map(|(key, _)| key.as_str()).collect();
        f.debug_struct("UrlQuery").field("keys", &keys).finish_non_exhaustive()
    }
}

/// What a query can say: texts, `true` and `false`, whole numbers, [durations](duration), and lists with commas between
/// the items (a comma in an item is `%2C`).
pub trait UrlValue: Sized {
    /// Reads a value as it stands in the query, or tells what it must be.
    ///
    /// # Errors
    /// What it must be, to stand behind the name of the field.
    fn from_raw(raw: &str) -> Result<Self, String>;
}

const BROKEN: &str = "has a `%` that encodes nothing; write it as %25";

impl UrlValue for String {
    fn from_raw(raw: &str) -> Result<Self, String> {
        percent::decode(raw).ok_or_else(|| BROKEN.to_owned())
    }
}

impl UrlValue for bool {
    fn from_raw(raw: &str) -> Result<Self, String> {
        match raw {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("must be true or false, is {raw:?}")),
        }
    }
}

impl UrlValue for Duration {
    fn from_raw(raw: &str) -> Result<Self, String> {
        let text = String::from_raw(raw)?;
        duration::parse(&text).ok_or_else(|| format!("must be {}, is {text:?}", duration::EXPECTED))
    }
}

impl UrlValue for Vec<String> {
    fn from_raw(raw: &str) -> Result<Self, String> {
        raw.split(',').filter(|item| !item.is_empty()).map(String::from_raw).collect()
    }
}

impl<T: UrlValue> UrlValue for Option<T> {
    fn from_raw(raw: &str) -> Result<Self, String> {
        T::from_raw(raw).map(Some)
    }
}

macro_rules! whole_numbers {
    ($($number:ty)*) => {$(
        impl UrlValue for $number {
            fn from_raw(raw: &str) -> Result<Self, String> {
                raw.parse().map_err(|_| {
                    format!("must be a whole number from {} to {}, is {raw:?}", Self::MIN, Self::MAX)
                })
            }
        }
    )*};
}

whole_numbers!(i32 i64 u16 u32 u64 usize);

fn name(raw: &str, field: &str, example: &str) -> Result<String> {
    if raw.is_empty() {
        return Err(missing(field, example));
    }
    percent::decode(raw).ok_or_else(|| invalid(format!("{field}: {BROKEN}")))
}

fn missing(field: &str, example: &str) -> BuqueueError {
    invalid(format!("{field}: is missing in the URL, as in {example}"))
}

fn invalid(fact: impl Into<String>) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> UrlQuery<'_> {
        UrlQuery::parse(text).unwrap()
    }

    fn refused<T>(result: Result<T>, beginning: &str) {
        let Err(error) = result else { panic!("{beginning} was taken") };
        assert_eq!(error.kind, ErrorKind::InvalidConfig);
        assert!(error.message().starts_with(beginning), "{error}");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    }

    #[test]
    fn a_url_is_taken_apart() {
        let (url, _) = UrlParts::parse("a://u:p@one:1,[::1]:2/x/y?k=v?", &["b", "a"]).unwrap();
        assert_eq!((url.scheme(), url.hosts(), url.path()), ("a", "one:1,[::1]:2", "x/y"));
        assert_eq!((url.base(), url.user_info()), ("a://u:p@one:1,[::1]:2/x/y", Some("u:p")));
        assert_eq!(url.name("topic", "").unwrap(), "x/y");
        let (url, _) = UrlParts::parse("a://host?k=v", &["a"]).unwrap();
        assert_eq!((url.hosts(), url.path(), url.base()), ("host", "", "a://host"));
        assert_eq!(url.credentials().unwrap(), None);
        refused(url.name("topic", "a://host/orders"), "topic: is missing in the URL, as in a://host/orders");
        let (url, _) = UrlParts::parse("a:///some/file%40x", &["a"]).unwrap();
        assert_eq!((url.hosts(), url.path()), ("", "some/file%40x"));
    }

    #[test]
    fn credentials_are_decoded() {
        let credentials = |url: &str| UrlParts::parse(url, &["a"]).unwrap().0.credentials();
        let some = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(credentials("a://u%3A:p%40%2F@h").unwrap(), some("u:", "p@/"));
        assert_eq!(credentials("a://u:p@p:p@h").unwrap(), some("u", "p@p:p"));
        assert_eq!(credentials("a://u@h").unwrap(), some("u", ""));
        refused(credentials("a://u:canary%zz@h"), "url: the credentials");
    }

    #[test]
    fn wrong_urls_are_refused_and_not_shown() {
        for url in ["", "canary", "b://canary", "A://canary", "canary://a://"] {
            refused(UrlParts::parse(url, &["a", "c"]), "url: must begin with a:// or c://");
        }
        for url in ["a://:can/ary@h/t", "a://:x?canary@h/t", "a://:x?canary=y@h/t", "a://h/t?k=canary@"] {
            refused(UrlParts::parse(url, &["a"]), "url: has an `@` behind");
        }
        refused(UrlParts::parse("a:///u:canary@h/t", &["a"]), "url: has an `@` behind");
        for url in ["a://u:can#ary@h/t", "a://u:canary@one,u:canary@two/t"] {
            refused(UrlParts::parse(url, &["a"]), "url: the user or the password");
        }
        for url in ["a://h/t?k=canary\n", "a://h/canary t", "\ta://canary"] {
            refused(UrlParts::parse(url, &["a"]), "url: ");
        }
        refused(UrlParts::parse("a://h?canary", &["a"]), "url: the query must be of key=value");
        refused(UrlParts::parse("a://h?%zz=canary", &["a"]), "url: a key");
        refused(UrlParts::parse("a://h?k=1&k=canary", &["a"]), "url: the key \"k\" is there twice");
        refused(UrlParts::parse("a://h/%zz", &["a"]).unwrap().0.name("topic", ""), "topic: has a `%`");
    }

    #[test]
    fn values_are_read() {
        let mut query = query("t=a%26b+c&&b=true&n=-7&d=5m&l=a.%3E,b%2Cc,&o=9&k%65y=#.>&e=");
        let (mut text, mut yes, mut number, mut time) = (String::new(), false, 0_i32, Duration::ZERO);
        let (mut list, mut some, mut none) = (Vec::new(), None::<u16>, None::<u16>);
        let (mut key, mut empty) = (String::new(), "full".to_owned());
        query.set("t", &mut text).unwrap();
        query.set("b", &mut yes).unwrap();
        query.set("n", &mut number).unwrap();
        query.set("d", &mut time).unwrap();
        query.set("l", &mut list).unwrap();
        query.set("o", &mut some).unwrap();
        query.set("absent", &mut none).unwrap();
        query.require("key", &mut key, "").unwrap();
        query.set("e", &mut empty).unwrap();
        query.finish().unwrap();
        assert_eq!((text.as_str(), yes, number, time), ("a&b+c", true, -7, Duration::from_secs(300)));
        assert_eq!((list, some, none), (vec!["a.>".to_owned(), "b,c".to_owned()], Some(9), None));
        assert_eq!((key.as_str(), empty.as_str()), ("#.>", ""));
    }

    #[test]
    fn wrong_values_name_their_field() {
        refused(query("t=%zz").set("t", &mut String::new()), "t: has a `%`");
        refused(query("l=a,%zz").set("l", &mut Vec::<String>::new()), "l: has a `%`");
        refused(query("b=yes").set("b", &mut false), "b: must be true or false, is \"yes\"");
        refused(
            query("n=70000").set("n", &mut 0_u16),
            "n: must be a whole number from 0 to 65535, is \"70000\"",
        );
        refused(query("n=").set("n", &mut Some(0_u64)), "n: must be a whole number");
        let mut time = Duration::from_secs(1);
        refused(query("d=30").set("d", &mut time), "d: must be a duration as in \"30s\"");
        refused(query("").require("t", &mut String::new(), "?t=x"), "t: is missing in the URL, as in ?t=x");
    }

    #[test]
    fn choices_are_listed() {
        let choices = [("one", 1), ("two", 2)];
        let mut choice = 0;
        query("c=two").choose("c", &mut choice, &choices).unwrap();
        query("d=one").choose("c", &mut choice, &choices).unwrap();
        assert_eq!(choice, 2);
        refused(
            query("c=three").choose("c", &mut choice, &choices),
            "c: must be one of one, two, is \"three\"",
        );
    }

    #[test]
    fn what_a_client_reads_is_kept_as_it_is() {
        let mut query = query("b=%zz&x=1&a=2+3");
        assert_eq!(query.keep(&["a", "b", "c"]), "?a=2%2B3&b=%zz");
        assert_eq!(query.keep(&["d"]), "");
        refused(query.finish(), "url: unknown key \"x\"; known are a, b, c, d");
    }

    #[test]
    fn debug_shows_no_secret() {
        let parts = UrlParts::parse("a://canary:canary@h/x?password=canary", &["a"]).unwrap();
        let text = format!("{parts:?}");
        assert!(!text.contains("canary") && text.contains("password"), "{text}");
    }
}
