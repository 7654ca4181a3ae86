//! Secrets in a file of configuration.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

/// Formats that show the line of a file in their errors, as TOML does, show it here as well: do not log those errors.
///
/// For fields of a config: `#[serde(deserialize_with = "buqueue_core::secret::deserialize")]`. A string, as any other; but
/// where it is none, as a password of digits without its quotes, the error does not show it.
///
/// # Errors
/// The deserializer's, for what is no string.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    // Asked for a string, a deserializer answers by itself where there is none, and quotes what there is.
    deserializer.deserialize_any(Secret)
}

struct Secret;

fn refused<E: Error>() -> E {
    E::custom("must be a string")
}

impl Visitor<'_> for Secret {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<String, E> {
        Err(refused())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<String, E> {
        Err(refused())
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<String, E> {
        Err(refused())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<String, E> {
        Err(refused())
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<String, E> {
        Err(refused())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<String, E> {
        Err(refused())
    }
}

/// Implements `Deserialize` for a config by a private struct with `#[serde(remote = "…")]`, so that what is no map is refused,
/// and not shown: a URL where a struct belongs has a password, and a deserializer's own error quotes it.
#[doc(hidden)]
#[macro_export]
macro_rules! __deserialize_map_only {
    ($config:ident, $fields:ident) => {
        // On the implementation itself, where documentation looks for it.
        #[cfg(feature = "serde")]
        impl<'de> ::serde::Deserialize<'de> for $config {
            fn deserialize<D: ::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> ::std::result::Result<Self, D::Error> {
                struct Map;

                impl<'de> ::serde::de::Visitor<'de> for Map {
                    type Value = $config;

                    fn expecting(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                        f.write_str(concat!("the fields of ", stringify!($config)))
                    }

                    fn visit_map<A: ::serde::de::MapAccess<'de>>(
                        self,
                        map: A,
                    ) -> ::std::result::Result<$config, A::Error> {
                        $fields::deserialize(::serde::de::value::MapAccessDeserializer::new(map))
                    }

                    fn visit_str<E: ::serde::de::Error>(self, _: &str) -> ::std::result::Result<$config, E> {
                        Err(E::custom(concat!(
                            "must be the fields of ",
                            stringify!($config),
                            ", is a string"
                        )))
                    }
                }

                deserializer.deserialize_any(Map)
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_string_is_not_shown() {
        let read = |json: &str| deserialize(&mut serde_json::Deserializer::from_str(json));
        assert_eq!(read("\"canary\"").unwrap(), "canary");
        for json in ["4711", "-4711", "4711.5", "[4711]"] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains("string") && !error.contains("4711"), "{error}");
        }
    }
}
