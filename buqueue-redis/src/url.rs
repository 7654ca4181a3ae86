//! The configuration as one URL.

use buqueue_core::Result;
use buqueue_core::url::UrlParts;

use crate::RedisConfig;
use crate::config::{Endpoint, SCHEMES, invalid};

impl RedisConfig {
    /// Reads a [`url`](Self::url) with the other fields in its query:
    /// `rediss://user:password@host:6379/0?stream=orders&group=workers&pending_timeout=5m`.
    ///
    /// What stands before the `?` is handed to the client as it is; of its query parameters that of sentinel URLs go there
    /// too, `db`, `user` and `pass` of a Unix socket, and `protocol`. `stream` must be there; what is not, is as in
    /// [`default`](Self::default). The options of [`RedisBuilderExt`](crate::RedisBuilderExt) are not in the URL.
    ///
    /// # Errors
    /// [`InvalidConfig`](buqueue_core::ErrorKind::InvalidConfig), with `url` or the field at fault. What the values say is
    /// checked when the queue is built.
    pub fn from_url(url: &str) -> Result<Self> {
        let (parts, mut query) = UrlParts::parse(url, &SCHEMES)?;
        if url.split_once('?').is_some_and(|(_, query)| query.contains('#')) {
            return Err(invalid("url: `#insecure` must stand before the `?`; in a name `#` is %23"));
        }
        let mut config = Self::default();
        query.require("stream", &mut config.stream, "redis://host:6379?stream=orders")?;
        query.set("group", &mut config.group)?;
        query.set("consumer", &mut config.consumer)?;
        query.set("read_count", &mut config.read_count)?;
        query.set("block_ms", &mut config.block_ms)?;
        query.set("pending_timeout", &mut config.pending_timeout)?;
        let own: &[&str] = match parts.scheme() {
            scheme if scheme.ends_with("+sentinel") => &["sentinel_username", "sentinel_password"],
            "redis+unix" => &["protocol", "db", "user", "pass"],
            _ => &["protocol"],
        };
        config.url = format!("{}{}", parts.base(), query.keep(own));
        query.finish()?;
        Endpoint::parse(&config.url)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use buqueue_core::ErrorKind;

    use super::*;

    #[test]
    fn a_url_says_every_field() {
        let url = "rediss://user:p%40ss@host:6379/3?stream=orders%2Fnew&group=workers&consumer=one&read_count=7\
                   &block_ms=500&pending_timeout=5m";
        let expected = RedisConfig {
            url: "rediss://user:p%40ss@host:6379/3".to_owned(),
            stream: "orders/new".to_owned(),
            group: "workers".to_owned(),
            consumer: "one".to_owned(),
            read_count: 7,
            block_ms: 500,
            pending_timeout: Duration::from_secs(300),
        };
        assert_eq!(RedisConfig::from_url(url).unwrap(), expected);
        let expected = RedisConfig {
            url: "redis://host".to_owned(),
            stream: "orders".to_owned(),
            ..RedisConfig::default()
        };
        assert_eq!(RedisConfig::from_url("redis://host?stream=orders").unwrap(), expected);
    }

    #[test]
    fn the_clients_own_parameters_stay_in_its_url() {
        for (url, own) in [
            (
                "redis+sentinel://:p@a:1,b:2/svc/3?stream=s&sentinel_password=p%2B&sentinel_username=u",
                "redis+sentinel://:p@a:1,b:2/svc/3?sentinel_username=u&sentinel_password=p%2B",
            ),
            ("redis+unix:///run/x.sock?db=2&stream=s&pass=p", "redis+unix:///run/x.sock?db=2&pass=p"),
            ("valkeys://h/1?protocol=resp3&stream=s", "valkeys://h/1?protocol=resp3"),
            ("rediss://h/#insecure?stream=s", "rediss://h/#insecure"),
        ] {
            assert_eq!(RedisConfig::from_url(url).unwrap().url, own);
        }
    }

    #[test]
    fn wrong_urls_name_the_fault_and_no_secret() {
        for (url, beginning) in [
            ("http://:canary@host", "url: must begin with redis:// or rediss://"),
            ("redis://:can/ary@host?stream=s", "url: has an `@`"),
            ("redis://:x?canary@host?stream=s", "url: has an `@`"),
            ("redis://:canary@host:notaport/?stream=s", "url: not a valid URL"),
            ("redis+sentinel://:canary@host?stream=s", "url: a sentinel URL must name its service"),
            ("redis://:canary@host", "stream: is missing"),
            ("redis://:canary@host?stream=%zz", "stream: has a `%`"),
            ("redis://:canary@host?stream=s&read_count=many", "read_count: must be a whole number"),
            ("redis://:canary@host?stream=s&block_ms=2s", "block_ms: must be a whole number"),
            ("redis://:canary@host?stream=s&pending_timeout=60", "pending_timeout: must be a duration"),
            ("redis://:canary@host?stream=s&stream=t", "url: the key \"stream\" is there twice"),
            ("rediss://:canary@host?stream=s#insecure", "url: `#insecure`"),
            (
                "redis://:canary@host?stream=s&sentinel_password=canary",
                "url: unknown key \"sentinel_password\"",
            ),
            (
                "redis://:canary@host?stream=s&url=canary",
                "url: unknown key \"url\"; known are stream, group, consumer, read_count, block_ms, \
                 pending_timeout, protocol",
            ),
        ] {
            let error = RedisConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(beginning), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}
