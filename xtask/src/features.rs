//! The facade's features, each by itself.

use std::process::Command;

use crate::error::{Result, bail};
use crate::package::{manifest, without_warnings};
use crate::process::{note, say};
use crate::test::{cargo, root};

pub const ARGUMENTS: &str = "[--msrv] [FEATURE…]";
pub const ABOUT: &str =
    "    Checks the facade without features and with each feature alone. A warning is a failure.

    --msrv   with the Rust that the crates say is enough; `rustup toolchain install` it first
";

pub fn command(arguments: &[String]) -> Result<()> {
    let (options, names): (Vec<String>, Vec<String>) =
        arguments.iter().cloned().partition(|argument| argument == "--msrv");
    for feature in asked_for(&names)? {
        let mut name = name_of(&feature).to_owned();
        let mut check = cargo(&[]);
        if !options.is_empty() {
            let version = rust_version(&feature)?;
            name.push_str(&format!(", Rust {version}"));
            check = Command::new("rustup");
            check.args(["run", &version, "cargo"]).current_dir(root());
        }
        note(&format!("== {name}"));
        check.args(["check", "-p", "buqueue", "--no-default-features", "--features", &feature]);
        without_warnings(check)?;
        say(&format!("ok  {name}"));
    }
    Ok(())
}

/// What the backend of that name needs, or else the facade.
fn rust_version(feature: &str) -> Result<String> {
    let manifest = manifest(&format!("buqueue-{feature}")).or_else(|_| manifest("buqueue"))?;
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \""));
    match version {
        Some(version) => Ok(version.trim_end_matches('"').to_owned()),
        None => bail!("no rust-version for {}", name_of(feature)),
    }
}

/// The features that are named, or none and then every one.
pub fn asked_for(arguments: &[String]) -> Result<Vec<String>> {
    let known = all()?;
    if let Some(unknown) = arguments.iter().find(|name| !known.contains(name)) {
        bail!("no feature {unknown:?}; known are {}", known.join(", "));
    }
    Ok(if arguments.is_empty() {
        std::iter::once(String::new()).chain(known).collect()
    } else {
        arguments.to_vec()
    })
}

pub fn name_of(feature: &str) -> &str {
    if feature.is_empty() { "no feature" } else { feature }
}

/// The features of the facade.
pub fn all() -> Result<Vec<String>> {
    let manifest = manifest("buqueue")?;
    let lines = manifest.lines().skip_while(|line| *line != "[features]").skip(1);
    let own = lines.take_while(|line| !line.starts_with('['));
    let mut features: Vec<String> = (own.filter(|line| !line.starts_with([' ', '#', ']'])))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()))
        .filter(|name| name != "default")
        .collect();
    features.sort();
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_of_the_facade_are_found() -> Result<()> {
        let features = all()?;
        for known in ["kafka", "memory", "metrics", "nats", "rabbitmq", "redis", "sqs", "tracing"] {
            assert!(features.iter().any(|feature| feature == known), "{known} is not in {features:?}");
        }
        assert!(asked_for(&["fax".to_owned()]).is_err());
        Ok(())
    }

    #[test]
    fn a_backend_may_need_a_newer_rust_than_the_facade() -> Result<()> {
        assert_eq!(rust_version("tracing")?, rust_version("")?);
        assert_ne!(rust_version("sqs")?, rust_version("")?);
        Ok(())
    }
}
