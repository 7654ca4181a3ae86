//! The examples of buqueue; run one with `cargo run --example NAME`.
