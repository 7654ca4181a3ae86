//! The cases, by group. Each is named in the list of `list.rs`, with the promise that it keeps.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a case that cannot go on has failed")]
#![expect(clippy::missing_errors_doc, reason = "a case returns an error only to exclude itself")]

pub mod build;
pub mod send;
